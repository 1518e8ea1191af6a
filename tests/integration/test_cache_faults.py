"""Every request is answered in any state of Redis, and a recovered Redis is used again."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count

import pytest
from redis.asyncio import Redis
from samclip.v1 import samclip_pb2 as pb

from services.backbone.embedder import Embedder
from services.cache import connection
from services.observability import metrics
from tests import redis_server
from tests.fake_model import FakeModel
from tests.in_process import ANYBODY, png
from tests.ports import free_port

ALL = (pb.SAM, pb.CLIP_DENSE, pb.CLIP_POOLED)
IMAGES = count(1)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(connection, "PROBE_S", 0.02)


@pytest.fixture
def embedder_at(settings) -> Callable:
    @asynccontextmanager
    async def open_(url: str, timeout_ms: float = 60_000) -> AsyncIterator[Embedder]:
        """Run an embedder without an in-memory cache, so that every lookup reaches Redis."""
        chosen = {"redis_url": url, "redis_timeout_ms": timeout_ms, "cache_bytes": 0}
        embedder = Embedder(FakeModel(), settings.model_copy(update=chosen))
        yield embedder
        await embedder.close()

    return open_


def breakers(embedder: Embedder) -> tuple[bool, bool]:
    """Return whether the breakers of (reads, writes) are closed."""
    link = embedder.cache._shared._link
    return link.read.closed, link.write.closed


async def answers(embedder: Embedder, requests: int = 8) -> None:
    """Check that concurrent requests for different images are all answered."""
    images = [png(next(IMAGES) % 256, 40 + next(IMAGES) % 50) for _ in range(requests)]
    found = await asyncio.gather(*(embedder.embed(ANYBODY, image, ALL) for image in images))
    assert [list(result.entries) for result in found] == [list(ALL)] * requests


async def answers_until(embedder: Embedder, reads: bool, writes: bool) -> None:
    while breakers(embedder) != (reads, writes):
        await answers(embedder)


async def heals(embedder: Embedder) -> None:
    """Wait until an encoded image is found in the cache."""
    image = png(next(IMAGES) % 256, 99)
    while not (await embedder.embed(ANYBODY, image, ALL)).cached:
        await asyncio.sleep(0.01)
    assert await embedder.cache.state() == "up"


async def test_killed_and_started_again_empty(embedder_at, own_redis):
    async with embedder_at(own_redis.url) as embedder:
        await heals(embedder)
        own_redis.kill()
        await answers_until(embedder, reads=False, writes=False)
        assert await embedder.cache.state() == "down"
        await answers(embedder)
        own_redis.start()
        await heals(embedder)
        assert breakers(embedder) == (True, True)


async def test_killed_under_load(embedder_at, own_redis):
    async with embedder_at(own_redis.url) as embedder:
        load = asyncio.create_task(answers(embedder, requests=64))
        await asyncio.sleep(0.005)
        own_redis.kill()
        await load


async def test_absent_at_the_start(embedder_at, tmp_path):
    server = redis_server.RedisServer(tmp_path)
    async with embedder_at(server.url) as embedder:
        await answers_until(embedder, reads=False, writes=False)
        server.start()
        await heals(embedder)
        server.kill()


async def test_frozen(embedder_at, own_redis):
    async with embedder_at(own_redis.url, timeout_ms=200) as embedder:
        await heals(embedder)
        own_redis.freeze()
        await answers_until(embedder, reads=False, writes=False)
        await answers(embedder)
        own_redis.thaw()
        await heals(embedder)


async def test_slow(embedder_at, own_redis):
    async with (
        redis_server.delayed(own_redis, seconds=0.2) as url,
        embedder_at(url, timeout_ms=100) as embedder,
    ):
        await answers_until(embedder, reads=False, writes=False)
        asked = embedder.cache._shared._link.read
        for _ in range(20):
            await answers(embedder)
        assert not asked.closed  # every probe timed out
        assert await embedder.cache.state() == "down"


async def test_an_open_breaker_asks_nothing_of_redis(embedder_at, own_redis, monkeypatch):
    async with embedder_at(own_redis.url) as embedder, Redis(port=own_redis.port) as admin:
        monkeypatch.setattr(connection, "PROBE_S", 3600)
        own_redis.kill()
        await answers_until(embedder, reads=False, writes=False)
        own_redis.start()
        await admin.config_resetstat()
        await answers(embedder, requests=20)
        assert not {"cmdstat_mget", "cmdstat_set", "cmdstat_exists"} & set(
            await admin.info("commandstats")
        )


@pytest.mark.parametrize(
    ("options", "mend"),
    [
        (("--maxmemory", "1mb"), "CONFIG SET maxmemory 0"),
        (("--replicaof", f"127.0.0.1 {free_port()}"), "REPLICAOF NO ONE"),
    ],
    ids=["a full Redis", "a read-only replica"],
)
async def test_reads_go_on_while_writes_are_refused(embedder_at, tmp_path, options, mend):
    with redis_server.running(tmp_path, *options) as server:
        async with embedder_at(server.url) as embedder, Redis(port=server.port) as admin:
            await answers_until(embedder, reads=True, writes=False)
            assert await embedder.cache.state() == "up"
            await admin.execute_command(*mend.split())
            await heals(embedder)


async def test_the_wrong_password(embedder_at, tmp_path):
    with redis_server.running(tmp_path, "--requirepass", "right") as server:
        url = server.url.replace("//", "//:wrong@")
        async with (
            embedder_at(url) as embedder,
            Redis(port=server.port, password="right") as admin,
        ):
            await answers_until(embedder, reads=False, writes=False)
            assert await embedder.cache.state() == "down"
            await admin.config_set("requirepass", "wrong")
            await heals(embedder)


async def test_a_failure_is_counted_as_one(embedder_at):
    async with embedder_at(f"redis://127.0.0.1:{free_port()}/0") as embedder:
        errors = metrics.CACHE.labels("l2", "SAM", "error")
        before = errors._value.get()
        await answers(embedder, requests=8)
        assert errors._value.get() == before + 8
