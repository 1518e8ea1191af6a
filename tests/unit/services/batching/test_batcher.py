"""Which items form a batch, and what becomes of them."""

import asyncio

import pytest

from samclip_core.errors import Overloaded, Unavailable
from services.batching.batcher import Batcher
from services.batching.queue import buckets
from services.observability import metrics
from tests.unit.services.batching.device import (
    NOW,
    Device,
    busy,
    make,
    released,
    settle,
    submit,
)


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
    assert await batcher.submit(3, NOW) == 6
    assert released("idle") == before + 1


async def test_what_comes_while_the_device_is_busy_goes_together_in_order():
    device = Device()
    batcher = make(device)
    device.free.clear()
    calls = [asyncio.create_task(batcher.submit(i, NOW)) for i in range(6)]
    await settle()
    assert metrics.QUEUE.labels("test")._value.get() == len(batcher) == 2
    device.free.set()
    assert await asyncio.gather(*calls) == [0, 2, 4, 6, 8, 10]
    assert metrics.QUEUE.labels("test")._value.get() == 0
    assert device.batches[0] == [0, 1, 2, 3]  # all six arrived before the worker ran
    assert device.batches[1:] == [[4, 5]]


async def test_only_items_of_one_kind_go_together_and_none_is_forgotten():
    device = Device()
    batcher = make(device, max_size=2)
    first = await busy(device, batcher)
    others = [asyncio.create_task(batcher.submit(i, NOW, kind=i % 2)) for i in range(1, 6)]
    await settle()
    device.free.set()
    await asyncio.gather(first, *others)
    assert device.batches == [[0], [1, 3], [2, 4], [5]]


async def test_only_bucket_sizes_are_run():
    device = Device()
    batcher = make(device, max_size=8)
    device.free.clear()
    first = asyncio.create_task(batcher.submit(0, NOW))
    await settle()
    others = [asyncio.create_task(batcher.submit(i, NOW)) for i in range(7)]
    await settle()
    device.free.set()
    await asyncio.gather(first, *others)
    assert [len(batch) for batch in device.batches] == [1, 4, 2, 1]


async def test_a_full_batch_goes_although_more_are_coming():
    device = Device()
    batcher = make(device, max_size=2)
    before = released("full")
    with batcher.coming(NOW):
        results = await asyncio.gather(batcher.submit(1, NOW), batcher.submit(2, NOW))
    assert results == [2, 4]
    assert released("full") == before + 1


async def test_it_waits_for_what_is_coming_and_takes_it_along():
    device = Device()
    batcher = make(device)
    with batcher.coming(NOW):
        first = asyncio.create_task(batcher.submit(1, NOW))
        await settle()
        assert device.batches == []
    second = asyncio.create_task(batcher.submit(2, NOW))
    assert await asyncio.gather(first, second) == [2, 4]
    assert device.batches == [[1, 2]]


async def test_it_waits_for_what_is_coming_no_longer_than_allowed():
    device = Device()
    batcher = make(device, max_wait_s=0.001)
    before = released("waited")
    with batcher.coming(NOW):
        assert await batcher.submit(1, NOW) == 2
    assert released("waited") == before + 1


async def test_the_wait_is_counted_from_arrival_not_from_the_last_batch(clock):
    device = Device()
    batcher = make(device, max_wait_s=60)
    first = await busy(device, batcher)
    with batcher.coming(NOW):
        (second,) = submit(batcher, 1)
        await settle()
        clock.now += 60
        device.free.set()
        assert await asyncio.gather(first, second) == [0, 2]


async def test_a_failure_reaches_the_callers_of_that_batch_only():
    device = Device()
    batcher = make(device)
    device.failure = MemoryError("too large")
    results = await asyncio.gather(*submit(batcher, 1, 2), return_exceptions=True)
    assert [type(result) for result in results] == [MemoryError, MemoryError]
    device.failure = None
    assert await batcher.submit(3, NOW) == 6


async def test_a_wrong_number_of_results_fails_the_batch_not_the_worker():
    async def short(items: list[int]) -> list[int]:
        return items[1:]

    batcher = Batcher[int, int](short, part="test", max_size=4, max_wait_s=0, max_queue=9)
    for _ in range(2):
        results = await asyncio.gather(*submit(batcher, 1, 2), return_exceptions=True)
        assert [type(result) for result in results] == [ValueError, ValueError]


async def test_cancelled_callers_are_dropped_before_execution():
    device = Device()
    batcher = make(device)
    device.free.clear()
    first = asyncio.create_task(batcher.submit(0, NOW))
    await settle()
    calls = [asyncio.create_task(batcher.submit(i, NOW)) for i in (1, 2, 3)]
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
    calls = [asyncio.create_task(batcher.submit(i, NOW)) for i in range(50)]
    await settle()
    for call in calls[:45]:
        call.cancel()
    device.free.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(result, asyncio.CancelledError) for result in results) == 45
    assert results[45:] == [90, 92, 94, 96, 98]
    assert await batcher.submit(7, NOW) == 14
    assert len(batcher) == 0


async def test_the_queue_is_bounded_before_the_work_of_preparing():
    device = Device()
    batcher = make(device, max_queue=2)
    device.free.clear()
    running = asyncio.create_task(batcher.submit(0, NOW))
    await settle()
    waiting = asyncio.create_task(batcher.submit(1, NOW))
    await settle()
    refused = pytest.raises(Overloaded, match="2 requests are waiting")
    with batcher.coming(NOW), refused, batcher.coming(NOW):
        pass
    device.free.set()
    assert await asyncio.gather(running, waiting) == [0, 2]
    with batcher.coming(NOW):
        pass  # the queue has space again


async def test_callers_who_have_gone_make_room_while_a_batch_runs():
    device = Device()
    batcher = make(device, max_queue=2)
    first = await busy(device, batcher)
    gone = submit(batcher, 1, 2)
    await settle()
    for call in gone:
        call.cancel()
    await settle()
    waiting = submit(batcher, 3, 4)
    await settle()
    device.free.set()
    assert await asyncio.gather(first, *waiting) == [0, 6, 8]
    assert device.batches == [[0], [3, 4]]


async def test_closing_finishes_what_waits_and_takes_no_more():
    device = Device()
    batcher = make(device)
    calls = [asyncio.create_task(batcher.submit(i, NOW)) for i in range(3)]
    await settle()
    await batcher.close()
    assert await asyncio.gather(*calls) == [0, 2, 4]
    with pytest.raises(Unavailable, match="shutting down"):
        await batcher.submit(9, NOW)


async def test_a_poisoned_item_fails_alone():
    device = Device()
    batcher = make(device)
    first = await busy(device, batcher)
    device.poison = 2
    calls = submit(batcher, 1, 2, 3, 4)
    await settle()
    device.free.set()
    results = await asyncio.gather(first, *calls, return_exceptions=True)
    assert isinstance(results.pop(2), ZeroDivisionError)
    assert results == [0, 2, 6, 8]
    assert device.batches == [[0], [1, 2, 3, 4], [1], [2], [3], [4]]


async def test_one_who_left_is_not_run_again_with_the_others_of_a_failed_batch():
    device = Device()
    batcher = make(device)
    device.poison = 2
    device.free.clear()
    calls = submit(batcher, 1, 2, 3)
    await settle()
    calls[0].cancel()
    await settle()
    device.free.set()
    await asyncio.gather(*calls, return_exceptions=True)
    assert device.batches == [[1, 2], [2], [3]]


async def test_costs_bound_a_batch_and_none_overtakes_a_large_one():
    device = Device()
    batcher = Batcher[int, int](device.run, part="test", max_size=6, max_wait_s=60, max_queue=9)
    first = await busy(device, batcher)
    calls = [
        task
        for item, cost in ((1, 2.0), (2, 3.5), (3, 9.0), (4, 1.0), (5, 5.0), (6, 0.5))
        for task in submit(batcher, item, cost=cost)
    ]
    await settle()
    device.free.set()
    await asyncio.gather(first, *calls)
    assert device.batches == [[0], [1, 2], [3], [4, 5], [6]]


async def test_a_cost_that_fills_the_batch_does_not_wait_for_what_is_coming():
    device = Device()
    batcher = make(device, max_size=4)
    with batcher.coming(NOW):
        assert await batcher.submit(1, NOW, cost=4) == 2


async def test_its_size_can_change_while_items_wait():
    device = Device()
    batcher = make(device, max_size=2)
    first = await busy(device, batcher)
    calls = submit(batcher, *range(1, 7))
    await settle()
    batcher.tune(max_size=6, max_wait_s=0)
    device.free.set()
    await asyncio.gather(first, *calls)
    assert device.batches == [[0], [1, 2, 3, 4, 5, 6]]


async def test_a_shorter_wait_counts_at_once():
    device = Device()
    batcher = make(device)
    with batcher.coming(NOW):
        (call,) = submit(batcher, 1)
        await settle()
        assert device.batches == []
        batcher.tune(max_size=4, max_wait_s=0)
        assert await call == 2


async def test_the_next_batch_waits_at_the_device_where_two_may_run():
    device = Device()
    batcher = make(device, max_size=2, at_once=2)
    device.free.clear()
    calls = submit(batcher, 1, 2, 3, 4, 5, 6)
    await settle()
    assert device.batches == [[1, 2], [3, 4]]
    device.free.set()
    assert await asyncio.gather(*calls) == [2, 4, 6, 8, 10, 12]
    assert device.batches == [[1, 2], [3, 4], [5, 6]]
    await batcher.close()


async def test_closing_waits_for_all_batches_that_run():
    device = Device()
    batcher = make(device, max_size=2, at_once=2)
    device.free.clear()
    calls = submit(batcher, 1, 2, 3)
    await settle()
    closing = asyncio.create_task(batcher.close())
    await settle()
    assert not closing.done()
    device.free.set()
    await closing
    assert [call.result() for call in calls] == [2, 4, 6]
