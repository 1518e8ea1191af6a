import asyncio
from collections.abc import Iterator

import pytest

from services.cache import connection
from services.cache.connection import FAILURES, Breaker, Unanswered
from services.observability import metrics
from tests.shown import shown

SHOWN = metrics.REDIS_UP.labels("read")


class FakeRedis:
    def __init__(self) -> None:
        self.well = False
        self.probes = 0
        self.probed = asyncio.Event()

    async def probe(self) -> None:
        self.probes += 1
        self.probed.set()
        await self.command()

    async def command(self) -> str:
        if not self.well:
            raise ConnectionError("gone")
        return "answer"


@pytest.fixture
def redis() -> FakeRedis:
    return FakeRedis()


@pytest.fixture
def breaker(redis: FakeRedis, monkeypatch: pytest.MonkeyPatch) -> Iterator[Breaker]:
    monkeypatch.setattr(connection, "PROBE_S", 0.001)
    breaker = Breaker("read", redis.probe, 60)
    yield breaker
    breaker.close()


async def fail(breaker: Breaker, redis: FakeRedis, times: int) -> None:
    redis.well = False
    for _ in range(times):
        with pytest.raises(Unanswered):
            await breaker(redis.command)


async def test_it_opens_only_after_consecutive_failures(breaker, redis):
    for _ in range(10):
        await fail(breaker, redis, FAILURES - 1)
        redis.well = True
        assert await breaker(redis.command) == "answer"
    assert breaker.closed
    await fail(breaker, redis, FAILURES)
    assert not breaker.closed
    redis.well = True
    with pytest.raises(Unanswered, match="failed repeatedly"):
        await breaker(redis.command)


async def test_a_command_without_an_answer_is_a_failure(redis):
    breaker = Breaker("read", redis.probe, 0.001)
    with pytest.raises(Unanswered, match="TimeoutError"):
        await breaker(asyncio.sleep, 60)


async def test_it_closes_when_a_probe_succeeds_and_opens_again(breaker, redis, caplog):
    for _ in range(2):
        await fail(breaker, redis, FAILURES + 5)
        redis.probed.clear()
        await redis.probed.wait()
        assert not breaker.closed
        assert shown(SHOWN) == 0
        redis.well = True
        while not breaker.closed:
            await asyncio.sleep(0.001)
        assert shown(SHOWN) == 1
    assert caplog.text.count("Redis reads disabled after repeated failures: gone") == 2
    assert caplog.text.count("Redis reads enabled again") == 2
    probes = redis.probes
    await asyncio.sleep(0.01)
    assert redis.probes == probes  # probing ends after recovery


async def test_a_closed_connection_is_not_probed(breaker, redis):
    await fail(breaker, redis, FAILURES)
    await redis.probed.wait()
    breaker.close()
    await asyncio.sleep(0)
    probes = redis.probes
    await asyncio.sleep(0.01)
    assert redis.probes == probes
