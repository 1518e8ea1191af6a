import asyncio

import pytest

from services.cache.embedding_cache import SingleFlight


class Work:
    def __init__(self) -> None:
        self.calls = 0
        self.cancelled = 0
        self.go = asyncio.Event()
        self.failure: Exception | None = None

    async def __call__(self) -> int:
        self.calls += 1
        call = self.calls
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.failure:
            raise self.failure
        return call


async def test_concurrent_callers_of_one_key_share_the_work():
    flights, work = SingleFlight[int](), Work()
    calls = [asyncio.create_task(flights.run("k", work)) for _ in range(10)]
    other = asyncio.create_task(flights.run("other", work))
    await asyncio.sleep(0)
    work.go.set()
    assert await asyncio.gather(*calls) == [1] * 10
    assert await other == 2
    assert await flights.run("k", work) == 3  # a later call runs again


async def test_all_callers_get_a_failure_and_the_next_call_runs_again():
    flights, work = SingleFlight[int](), Work()
    work.failure = ValueError("broken")
    work.go.set()
    results = await asyncio.gather(
        flights.run("k", work), flights.run("k", work), return_exceptions=True
    )
    assert [str(result) for result in results] == ["broken", "broken"]
    work.failure = None
    assert await flights.run("k", work) == 2


async def test_a_cancelled_caller_does_not_cancel_the_shared_work():
    flights, work = SingleFlight[int](), Work()
    first = asyncio.create_task(flights.run("k", work))
    second = asyncio.create_task(flights.run("k", work))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    work.go.set()
    assert await second == 1
    assert (work.calls, work.cancelled) == (1, 0)


async def test_work_without_callers_is_cancelled_and_a_later_call_starts_again():
    flights, work = SingleFlight[int](), Work()
    calls = [asyncio.create_task(flights.run("k", work)) for _ in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    newcomer = asyncio.create_task(flights.run("k", work))
    await asyncio.sleep(0)
    work.go.set()
    assert await newcomer == 2
    assert work.cancelled == 1
