import asyncio

import pytest

from samclip_core.errors import Overloaded, Unavailable
from services import metrics
from services.backbone.batcher import Batcher, buckets


class Device:
    """Doubles numbers, when it is let."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.free = asyncio.Event()
        self.free.set()
        self.failure: Exception | None = None

    async def run(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        await self.free.wait()
        if self.failure:
            raise self.failure
        return [2 * item for item in items]


def make(device: Device, max_size: int = 4, max_wait_s: float = 60.0, max_queue: int = 100):
    return Batcher[int, int](
        device.run, max_size=max_size, max_wait_s=max_wait_s, max_queue=max_queue
    )


def released(reason: str) -> float:
    return metrics.BATCH_RELEASE.labels(reason)._value.get()


async def settle() -> None:
    """Let everything run that can run without time passing."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("max_size", "sizes"),
    [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))],
)
def test_buckets_are_powers_of_two_and_the_largest(max_size, sizes):
    assert buckets(max_size) == sizes


async def test_an_idle_device_never_waits():
    device = Device()
    batcher = make(device)
    before = released("idle")
    assert await batcher.submit(3) == 6
    assert released("idle") == before + 1


async def test_what_comes_while_the_device_is_busy_goes_together_in_order():
    device = Device()
    batcher = make(device)
    device.free.clear()
    calls = [asyncio.create_task(batcher.submit(i)) for i in range(6)]
    await settle()
    device.free.set()
    assert await asyncio.gather(*calls) == [0, 2, 4, 6, 8, 10]
    assert device.batches[0] == [0, 1, 2, 3]  # all six came before the worker ran
    assert device.batches[1:] == [[4, 5]]


async def test_only_bucket_sizes_are_run():
    device = Device()
    batcher = make(device, max_size=8)
    device.free.clear()
    first = asyncio.create_task(batcher.submit(0))
    await settle()
    others = [asyncio.create_task(batcher.submit(i)) for i in range(7)]
    await settle()
    device.free.set()
    await asyncio.gather(first, *others)
    assert [len(batch) for batch in device.batches] == [1, 4, 2, 1]


async def test_a_full_batch_goes_although_more_are_coming():
    device = Device()
    batcher = make(device, max_size=2)
    before = released("full")
    with batcher.coming():
        results = await asyncio.gather(batcher.submit(1), batcher.submit(2))
    assert results == [2, 4]
    assert released("full") == before + 1


async def test_it_waits_for_what_is_coming_and_takes_it_along():
    device = Device()
    batcher = make(device)
    with batcher.coming():
        first = asyncio.create_task(batcher.submit(1))
        await settle()
        assert device.batches == []
    second = asyncio.create_task(batcher.submit(2))
    assert await asyncio.gather(first, second) == [2, 4]
    assert device.batches == [[1, 2]]


async def test_it_waits_for_what_is_coming_no_longer_than_allowed():
    device = Device()
    batcher = make(device, max_wait_s=0.001)
    before = released("waited")
    with batcher.coming():
        assert await batcher.submit(1) == 2
    assert released("waited") == before + 1


async def test_the_wait_is_counted_from_arrival_not_from_the_last_batch():
    device = Device()
    batcher = make(device, max_wait_s=0.01)
    with batcher.coming():
        device.free.clear()
        first = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.02)
        second = asyncio.create_task(batcher.submit(2))
        await asyncio.sleep(0.02)
        device.free.set()
        await settle()
        assert device.batches == [[1], [2]]
        assert await asyncio.gather(first, second) == [2, 4]


async def test_a_failure_reaches_the_callers_of_that_batch_only():
    device = Device()
    batcher = make(device)
    device.failure = MemoryError("too large")
    results = await asyncio.gather(batcher.submit(1), batcher.submit(2), return_exceptions=True)
    assert [type(result) for result in results] == [MemoryError, MemoryError]
    device.failure = None
    assert await batcher.submit(3) == 6


async def test_a_wrong_number_of_results_fails_the_batch_not_the_worker():
    async def short(items: list[int]) -> list[int]:
        return items[1:]

    batcher = Batcher[int, int](short, max_size=4, max_wait_s=0, max_queue=9)
    with pytest.raises(ValueError, match="shorter"):
        await batcher.submit(1)
    with pytest.raises(ValueError, match="shorter"):
        await batcher.submit(1)


async def test_cancelled_callers_are_dropped_before_execution():
    device = Device()
    batcher = make(device)
    device.free.clear()
    first = asyncio.create_task(batcher.submit(0))
    await settle()
    calls = [asyncio.create_task(batcher.submit(i)) for i in (1, 2, 3)]
    await settle()
    calls[1].cancel()
    await settle()
    device.free.set()
    assert await asyncio.gather(first, calls[0], calls[2]) == [0, 2, 6]
    assert device.batches == [[0], [1, 3]]


async def test_many_cancelled_callers_do_not_wedge_it():
    device = Device()
    batcher = make(device, max_size=8)
    device.free.clear()
    calls = [asyncio.create_task(batcher.submit(i)) for i in range(50)]
    await settle()
    for call in calls[:45]:
        call.cancel()
    device.free.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(result, asyncio.CancelledError) for result in results) == 45
    assert results[45:] == [90, 92, 94, 96, 98]
    assert await batcher.submit(7) == 14
    assert len(batcher) == 0


async def test_the_queue_is_bounded_before_the_work_of_preparing():
    device = Device()
    batcher = make(device, max_queue=2)
    device.free.clear()
    running = asyncio.create_task(batcher.submit(0))
    await settle()
    waiting = asyncio.create_task(batcher.submit(1))
    await settle()
    refused = pytest.raises(Overloaded, match="2 images are waiting")
    with batcher.coming(), refused, batcher.coming():
        pass
    device.free.set()
    assert await asyncio.gather(running, waiting) == [0, 2]
    with batcher.coming():
        pass  # there is room again


async def test_closing_finishes_what_waits_and_takes_no_more():
    device = Device()
    batcher = make(device)
    calls = [asyncio.create_task(batcher.submit(i)) for i in range(3)]
    await settle()
    await batcher.close()
    assert await asyncio.gather(*calls) == [0, 2, 4]
    with pytest.raises(Unavailable, match="shutting down"):
        await batcher.submit(9)
