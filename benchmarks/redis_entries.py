"""Part ``redis``: bytes per image in Redis, bytes per second of one client, memory of the service.

``samclip plan`` reads these figures.
"""

import shutil
import tempfile
import time
from pathlib import Path

import redis

from benchmarks.bench import Bench
from benchmarks.lines import Line
from benchmarks.load import Job
from benchmarks.service import running
from tests import redis_server

TABLE, COLUMN = "with Redis", "measured"
OUTPUTS = 3  # entries per image


def run(bench: Bench) -> list[Line]:
    if shutil.which("redis-server") is None:
        bench.log("skipped: redis-server is not installed")
        return []
    with (
        tempfile.TemporaryDirectory(prefix="samclip-bench-") as folder,
        redis_server.running(Path(folder)) as server,
        running(bench.directory, REDIS_URL=server.url) as service,
    ):
        bench.load(Job(service.http, "new", 8, 2 * bench.seconds))
        bench.load(Job(service.http, "click", 8, bench.seconds))
        memory = service.pss_bytes() / 1e9
        image, read = _redis(server.port)
    return [
        Line(TABLE, "memory after work (PSS)", COLUMN, "GB", [memory]),
        Line(TABLE, "an image", COLUMN, "kB", [image / 1e3]),
        Line(TABLE, "read by one client", COLUMN, "MB/s", [read / 1e6]),
    ]


def _redis(port: int) -> tuple[float, float]:
    """Return bytes per image, and bytes per second that one client reads entry by entry."""
    with redis.Redis(port=port) as client:
        image = client.info("memory")["used_memory_dataset"] / (client.dbsize() / OUTPUTS)
        largest = max(client.scan_iter(count=1000), key=client.strlen)
        size, number, begin = client.strlen(largest), 0, time.perf_counter()
        while time.perf_counter() < begin + 1:
            client.get(largest)
            number += 1
        return image, number * size / (time.perf_counter() - begin)
