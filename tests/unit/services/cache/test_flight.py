import asyncio

import pytest

from services.cache.flight import SingleFlight


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


async def test_the_same_at_the_same_time_is_done_once():
    flights, work = SingleFlight[int](), Work()
    calls = [asyncio.create_task(flights.run("k", work)) for _ in range(10)]
    other = asyncio.create_task(flights.run("other", work))
    await asyncio.sleep(0)
    work.go.set()
    assert await asyncio.gather(*calls) == [1] * 10
    assert await other == 2
    assert await flights.run("k", work) == 3  # a later call runs again


async def test_a_failure_reaches_all_and_is_not_kept():
    flights, work = SingleFlight[int](), Work()
    work.failure = ValueError("broken")
    work.go.set()
    results = await asyncio.gather(
        flights.run("k", work), flights.run("k", work), return_exceptions=True
    )
    assert [str(result) for result in results] == ["broken", "broken"]
    work.failure = None
    assert await flights.run("k", work) == 2


async def test_a_cancelled_caller_leaves_the_shared_work_alone():
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


async def test_work_that_nobody_waits_for_is_cancelled_and_a_newcomer_starts_afresh():
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
