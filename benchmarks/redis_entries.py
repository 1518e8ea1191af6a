"""Part ``redis``: what an image takes there, and what one client reads per second; and the memory
of a service after work. ``samclip plan`` needs them.
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
OUTPUTS = 3  # entries of an image


def run(bench: Bench) -> list[Line]:
    if shutil.which("redis-server") is None:
        bench.log("left out: there is no redis-server here")
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
    """Bytes of an image, and bytes that one client reads per second, an entry at a time."""
    with redis.Redis(port=port) as client:
        image = client.info("memory")["used_memory_dataset"] / (client.dbsize() / OUTPUTS)
        largest = max(client.scan_iter(count=1000), key=client.strlen)
        size, number, begin = client.strlen(largest), 0, time.perf_counter()
        while time.perf_counter() < begin + 1:
            client.get(largest)
            number += 1
        return image, number * size / (time.perf_counter() - begin)
