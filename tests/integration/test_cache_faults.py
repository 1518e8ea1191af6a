"""Every request is answered in any state of Redis, and a recovered Redis is used again."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count

import pytest
from redis.asyncio import Redis
from samclip.v1 import samclip_pb2 as pb

from services.backbone.engine import Engine
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
def engine_at(settings) -> Callable:
    @asynccontextmanager
    async def open_(url: str, timeout_ms: float = 60_000) -> AsyncIterator[Engine]:
        """Run an engine without an in-memory cache, so that every lookup reaches Redis."""
        chosen = {"redis_url": url, "redis_timeout_ms": timeout_ms, "cache_bytes": 0}
        engine = Engine(FakeModel(), settings.model_copy(update=chosen))
        yield engine
        await engine.close()

    return open_


def breakers(engine: Engine) -> tuple[bool, bool]:
    """Return whether the breakers of (reads, writes) are closed."""
    link = engine.cache._shared._link
    return link.read.closed, link.write.closed


async def answers(engine: Engine, requests: int = 8) -> None:
    """Check that concurrent requests for different images are all answered."""
    images = [png(next(IMAGES) % 256, 40 + next(IMAGES) % 50) for _ in range(requests)]
    found = await asyncio.gather(*(engine.embed(ANYBODY, image, ALL) for image in images))
    assert [list(result.entries) for result in found] == [list(ALL)] * requests


async def answers_until(engine: Engine, reads: bool, writes: bool) -> None:
    while breakers(engine) != (reads, writes):
        await answers(engine)


async def heals(engine: Engine) -> None:
    """Wait until an encoded image is found in the cache."""
    image = png(next(IMAGES) % 256, 99)
    while not (await engine.embed(ANYBODY, image, ALL)).cached:
        await asyncio.sleep(0.01)
    assert await engine.cache.state() == "up"


async def test_killed_and_started_again_empty(engine_at, own_redis):
    async with engine_at(own_redis.url) as engine:
        await heals(engine)
        own_redis.kill()
        await answers_until(engine, reads=False, writes=False)
        assert await engine.cache.state() == "down"
        await answers(engine)
        own_redis.start()
        await heals(engine)
        assert breakers(engine) == (True, True)


async def test_killed_under_load(engine_at, own_redis):
    async with engine_at(own_redis.url) as engine:
        load = asyncio.create_task(answers(engine, requests=64))
        await asyncio.sleep(0.005)
        own_redis.kill()
        await load


async def test_absent_at_the_start(engine_at, tmp_path):
    server = redis_server.RedisServer(tmp_path)
    async with engine_at(server.url) as engine:
        await answers_until(engine, reads=False, writes=False)
        server.start()
        await heals(engine)
        server.kill()


async def test_frozen(engine_at, own_redis):
    async with engine_at(own_redis.url, timeout_ms=200) as engine:
        await heals(engine)
        own_redis.freeze()
        await answers_until(engine, reads=False, writes=False)
        await answers(engine)
        own_redis.thaw()
        await heals(engine)


async def test_slow(engine_at, own_redis):
    async with (
        redis_server.delayed(own_redis, seconds=0.2) as url,
        engine_at(url, timeout_ms=100) as engine,
    ):
        await answers_until(engine, reads=False, writes=False)
        asked = engine.cache._shared._link.read
        for _ in range(20):
            await answers(engine)
        assert not asked.closed  # every probe timed out
        assert await engine.cache.state() == "down"


async def test_an_open_breaker_asks_nothing_of_redis(engine_at, own_redis, monkeypatch):
    async with engine_at(own_redis.url) as engine, Redis(port=own_redis.port) as admin:
        monkeypatch.setattr(connection, "PROBE_S", 3600)
        own_redis.kill()
        await answers_until(engine, reads=False, writes=False)
        own_redis.start()
        await admin.config_resetstat()
        await answers(engine, requests=20)
        assert not {"cmdstat_mget", "cmdstat_set", "cmdstat_exists"} & set(
            await admin.info("commandstats")
        )


async def test_full(engine_at, tmp_path):
    with redis_server.running(tmp_path, "--maxmemory", "1mb") as server:
        async with engine_at(server.url) as engine, Redis(port=server.port) as admin:
            await answers_until(engine, reads=True, writes=False)
            assert await engine.cache.state() == "up"
            await admin.config_set("maxmemory", 0)
            await heals(engine)


async def test_the_wrong_password(engine_at, tmp_path):
    with redis_server.running(tmp_path, "--requirepass", "right") as server:
        url = server.url.replace("//", "//:wrong@")
        async with (
            engine_at(url) as engine,
            Redis(port=server.port, password="right") as admin,
        ):
            await answers_until(engine, reads=False, writes=False)
            assert await engine.cache.state() == "down"
            await admin.config_set("requirepass", "wrong")
            await heals(engine)


async def test_a_read_only_replica(engine_at, tmp_path):
    with redis_server.running(tmp_path, "--replicaof", f"127.0.0.1 {free_port()}") as server:
        async with engine_at(server.url) as engine, Redis(port=server.port) as admin:
            await answers_until(engine, reads=True, writes=False)
            await admin.execute_command("REPLICAOF", "NO", "ONE")
            await heals(engine)


async def test_a_failure_is_counted_as_one(engine_at):
    async with engine_at(f"redis://127.0.0.1:{free_port()}/0") as engine:
        errors = metrics.CACHE.labels("l2", "SAM", "error")
        before = errors._value.get()
        await answers(engine, requests=8)
        assert errors._value.get() == before + 8
