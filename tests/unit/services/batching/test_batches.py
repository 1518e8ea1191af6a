"""Which items form a batch, when it runs, and what becomes of them if it fails."""

import asyncio
from contextlib import nullcontext

import pytest

from samclip_core.errors import Overloaded
from services.batching.queue import Queue
from tests.unit.services.batching.device import (
    BULK,
    NOW,
    batches,
    busy,
    finish,
    released,
    settle,
    submit,
)


@pytest.mark.parametrize(
    ("max_size", "sizes"),
    [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))],
)
def test_sizes_are_powers_of_two_and_the_largest(device, max_size, sizes):
    assert batches(device, max_size).sizes == sizes


COSTS = {0: 1.0, 1: 2.0, 2: 3.5, 3: 9.0, 4: 1.0, 5: 5.0, 6: 0.5}


@pytest.mark.parametrize(
    ("options", "bulk", "items", "ran"),
    [
        ({}, [1, 2, 3], [4, 5, 6], [[4, 5, 6, 1], [2, 3]]),  # bulk items fill the rest
        (
            {"max_size": 2, "kind": lambda item: item % 2},
            [],
            [1, 2, 3, 4, 5],
            [[1, 3], [2, 4], [5]],
        ),
        ({"max_size": 8, "bucketed": True}, [], [*range(7)], [[0, 1, 2, 3], [4, 5], [6]]),
        # No item overtakes a large one.
        ({"max_size": 6, "cost": COSTS.get}, [], [*range(1, 7)], [[1, 2], [3], [4, 5], [6]]),
    ],
)
async def test_which_items_form_a_batch(device, options, bulk, items, ran):
    batcher = batches(device, **options)
    calls = [await busy(device, batcher), *await submit(batcher, *bulk, priority=BULK)]
    calls += await submit(batcher, *items)
    await finish(device, calls)
    assert device.batches == [[0], *ran]


@pytest.mark.parametrize(
    ("options", "coming", "items", "reason"),
    [
        ({}, False, [1], "idle"),
        ({"max_size": 2}, True, [1, 2], "full"),
        ({"cost": lambda item: 4}, True, [1], "full"),
        ({"max_wait_s": 0.001}, True, [1], "waited"),
    ],
)
async def test_when_a_batch_runs_that_does_not_wait_for_more(
    device, options, coming, items, reason
):
    batcher, before = batches(device, **options), released(reason)
    with batcher.coming(NOW) if coming else nullcontext():
        assert await asyncio.gather(*await submit(batcher, *items)) == [2 * item for item in items]
    assert released(reason) == before + 1


async def test_items_that_arrive_while_the_device_is_busy_run_together(device):
    batcher = batches(device)
    device.free.clear()
    calls = await submit(batcher, *range(6))  # all arrive before the worker runs
    assert await finish(device, calls) == [0, 2, 4, 6, 8, 10]
    assert device.batches == [[0, 1, 2, 3], [4, 5]]


async def test_bulk_items_leave_places_for_a_whole_batch_of_others(device):
    batcher = batches(device, max_size=10, max_queue=30)
    calls = [await busy(device, batcher), *await submit(batcher, *range(20), priority=BULK)]
    with pytest.raises(Overloaded, match="20 requests are waiting"):
        await batcher.submit(9, BULK)
    await finish(device, calls)


async def test_a_batch_waits_for_an_item_that_is_coming(device):
    batcher = batches(device)
    with batcher.coming(NOW):
        calls = await submit(batcher, 1)
        assert device.batches == []
    assert await batcher.submit(2, NOW) == 4
    assert await asyncio.gather(*calls) == [2]
    assert device.batches == [[1, 2]]


async def test_the_wait_is_counted_from_the_arrival_of_the_oldest_item(device, clock):
    batcher = batches(device, max_wait_s=60)
    calls = [await busy(device, batcher)]
    with batcher.coming(NOW):
        calls += await submit(batcher, 1)
        clock.now += 60
        assert await finish(device, calls) == [0, 2]


async def test_the_size_can_change_while_items_wait(device):
    batcher = batches(device, max_size=2)
    calls = [await busy(device, batcher), *await submit(batcher, *range(1, 7))]
    batcher.tune(max_size=6, max_wait_s=0)
    await finish(device, calls)
    assert device.batches == [[0], [1, 2, 3, 4, 5, 6]]


async def test_a_shorter_wait_applies_at_once(device):
    batcher = batches(device)
    with batcher.coming(NOW):
        (call,) = await submit(batcher, 1)
        assert device.batches == []
        batcher.tune(max_size=4, max_wait_s=0)
        assert await call == 2


async def test_two_batches_run_at_once_where_allowed(device):
    batcher = batches(device, max_size=2, at_once=2)
    device.free.clear()
    calls = await submit(batcher, 1, 2, 3, 4, 5, 6)
    assert device.batches == [[1, 2], [3, 4]]
    assert await finish(device, calls) == [2, 4, 6, 8, 10, 12]
    assert device.batches[2:] == [[5, 6]]


async def test_only_the_item_at_fault_fails_and_the_others_run_again(device):
    batcher = batches(device)
    calls = [await busy(device, batcher)]
    device.poison = 2
    calls += await submit(batcher, 1, 2, 3, 4)
    device.free.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(results.pop(2), ZeroDivisionError)
    assert results == [0, 2, 6, 8]
    assert device.batches == [[0], [1, 2, 3, 4], [1], [2], [3], [4]]


async def test_a_cancelled_item_does_not_run_again_with_its_failed_batch(device):
    batcher = batches(device)
    device.poison = 2
    device.free.clear()
    calls = await submit(batcher, 1, 2, 3)
    calls[0].cancel()
    await settle()
    device.free.set()
    await asyncio.gather(*calls, return_exceptions=True)
    assert device.batches == [[1, 2, 3], [2], [3]]


async def test_a_wrong_number_of_results_fails_the_batch_and_not_the_worker():
    async def short(items: list[int]) -> list[int]:
        return items[1:]

    batcher = Queue[int, int](short, part="test", max_size=4, max_wait_s=0, max_queue=9)
    for _ in range(2):
        results = await asyncio.gather(*await submit(batcher, 1, 2), return_exceptions=True)
        assert [type(result) for result in results] == [ValueError, ValueError]
