"""Every request is answered in any state of Redis, and a recovered Redis is used again."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count

import pytest
import redis
from samclip.v1 import samclip_pb2 as pb

from services.backbone.embedder import Embedder
from services.cache import connection
from services.observability import metrics
from tests import redis_server
from tests.fake_model import FakeModel
from tests.in_process import ANYBODY, png
from tests.ports import free_port
from tests.redis_server import RedisServer
from tests.shown import shown

ALL = (pb.SAM, pb.CLIP_DENSE, pb.CLIP_POOLED)
IMAGES = count(1)
Step = Callable[[RedisServer, redis.Redis], object]
"""Does something to a Redis, with a client of its operator."""


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


def command(text: str) -> Step:
    return lambda _, admin: admin.execute_command(*text.split())


def of_process(act: Callable[[RedisServer], None]) -> Step:
    return lambda server, _: act(server)


KILL, START = of_process(RedisServer.kill), of_process(RedisServer.start)
FREEZE, THAW = of_process(RedisServer.freeze), of_process(RedisServer.thaw)


@pytest.mark.parametrize(
    ("harm", "mend", "at_the_start", "reads", "timeout_ms"),
    [
        pytest.param(KILL, START, False, False, 60_000, id="killed, and started again empty"),
        pytest.param(KILL, START, True, False, 60_000, id="absent"),
        pytest.param(FREEZE, THAW, False, False, 200, id="frozen"),
        pytest.param(
            command("CONFIG SET requirepass another"),
            command("CONFIG SET requirepass right"),
            *(True, False, 60_000),
            id="the wrong password",
        ),
        pytest.param(
            command("CONFIG SET maxmemory 1mb"),
            command("CONFIG SET maxmemory 0"),
            *(True, True, 60_000),
            id="full",
        ),
        pytest.param(
            command(f"REPLICAOF 127.0.0.1 {free_port()}"),
            command("REPLICAOF NO ONE"),
            *(True, True, 60_000),
            id="a read-only replica",
        ),
    ],
)
async def test_requests_are_answered_in_any_state_of_redis_and_it_is_used_again(
    embedder_at, tmp_path, harm, mend, at_the_start, reads, timeout_ms
):
    """A full Redis and a read-only replica still answer reads."""
    with (
        redis_server.running(tmp_path, "--requirepass", "right") as server,
        redis.Redis(port=server.port, password="right") as admin,
    ):
        if at_the_start:
            harm(server, admin)
        async with embedder_at(server.url.replace("//", "//:right@"), timeout_ms) as embedder:
            if not at_the_start:
                await heals(embedder)
                load = asyncio.create_task(answers(embedder, requests=64))
                await asyncio.sleep(0.005)
                harm(server, admin)
                await load
            await answers_until(embedder, reads=reads, writes=False)
            assert await embedder.cache.state() == ("up" if reads else "down")
            await answers(embedder)
            mend(server, admin)
            await heals(embedder)


async def test_an_open_breaker_asks_nothing_of_redis(embedder_at, own_redis, monkeypatch):
    async with embedder_at(own_redis.url) as embedder:
        monkeypatch.setattr(connection, "PROBE_S", 3600)
        own_redis.kill()
        await answers_until(embedder, reads=False, writes=False)
        own_redis.start()
        with redis.Redis(port=own_redis.port) as admin:
            admin.config_resetstat()
            await answers(embedder, requests=20)
            sent = admin.info("commandstats").keys()
        assert not {"cmdstat_mget", "cmdstat_set", "cmdstat_eval"} & sent


async def test_a_failure_is_counted_as_one(embedder_at):
    async with embedder_at(f"redis://127.0.0.1:{free_port()}/0") as embedder:
        errors = metrics.CACHE.labels("l2", "SAM", "error")
        before = shown(errors)
        await answers(embedder, requests=8)
        assert shown(errors) == before + 8
