"""Part ``cache``: what it costs where it cannot help (every image is new), whether memory grows,
and what Redis holds and gives.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import redis

from tests import redis_server
from tests.bench.bench import Bench
from tests.bench.lines import Line, ratio
from tests.bench.load import Job, Outcome
from tests.bench.service import Running, running

OFF = {"CACHE_BYTES": 0, "HEAD_CACHE_BYTES": 0}
SMALL = {"CACHE_BYTES": 16 * 2**20, "HEAD_CACHE_BYTES": 4 * 2**20}  # full early: what grows, leaks
OUTPUTS = 3  # entries of an image


def run(bench: Bench) -> Iterator[Line]:
    lines, _ = _beside_none(bench, "memory")
    yield from lines
    if shutil.which("redis-server") is None:
        bench.log("  Redis left out: there is no redis-server here")
        return
    with (
        tempfile.TemporaryDirectory(prefix="samclip-bench-") as folder,
        redis_server.running(Path(folder)) as server,
    ):
        lines, memory = _beside_none(bench, "memory and Redis", REDIS_URL=server.url)
        yield from lines
        grown = 1000 * (memory[-1] - memory[1]) / (bench.rounds - 1)
        yield Line("memory after each round", "GB", memory, facts={"GB": memory})
        yield Line("memory grown a round", "MB", [grown])
        yield from _redis(server.port)


def _beside_none(bench: Bench, where: str, **settings: object) -> tuple[list[Line], list[float]]:
    """In turns with a service that keeps nothing; and its memory in GB, before and after rounds."""
    with (
        running(bench.directory, **SMALL, **settings) as cached,
        running(bench.directory, **OFF) as uncached,
    ):
        memory, on, off = [cached.pss_bytes() / 1e9], list[Outcome](), list[Outcome]()
        for _ in range(bench.rounds):
            on.append(_new_images(bench, cached))
            off.append(_new_images(bench, uncached))
            memory.append(cached.pss_bytes() / 1e9)
    with_cache = _line(f"new images, cached in {where}", on)
    without = _line(f"new images, no cache beside {where}", off)
    compared = ratio(f"cached in {where} / not cached, new images", with_cache, without, True)
    return [with_cache, without, compared], memory


def _new_images(bench: Bench, service: Running) -> Outcome:
    return bench.load(Job("grpc", service.grpc, "classify", clients=8, seconds=bench.seconds))


def _line(name: str, outcomes: list[Outcome]) -> Line:
    facts = {"generator_cores": max(outcome.cpu_share for outcome in outcomes)}
    return Line(name, "/s", [outcome.rate for outcome in outcomes], True, facts=facts)


def _redis(port: int) -> list[Line]:
    """Bytes that an image takes there, and that one client reads a second, an entry at a time."""
    with redis.Redis(port=port) as client:
        images = client.dbsize() / OUTPUTS
        each = client.info("memory")["used_memory_dataset"] / images
        entries = sorted(client.scan_iter(count=1000), key=client.strlen)
        size, largest = client.strlen(entries[-1]), entries[-1]
        number, begin = 0, time.perf_counter()
        while time.perf_counter() < begin + 1:
            client.get(largest)
            number += 1
        rate = number * size / (time.perf_counter() - begin)
    return [
        Line("an image in Redis", "kB", [each / 1000], facts={"images": images}),
        Line("read from Redis, one connection", "MB/s", [rate / 1e6], True),
    ]
