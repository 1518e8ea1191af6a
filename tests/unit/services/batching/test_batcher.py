"""Which items form a batch, when it runs, and what becomes of them if it fails."""

import asyncio

import pytest

from samclip_core.errors import Overloaded
from services.batching.batcher import Batcher
from tests.unit.services.batching.device import (
    BULK,
    NOW,
    batches,
    busy,
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


async def test_an_idle_device_never_waits(device):
    before = released("idle")
    assert await batches(device).submit(3, NOW) == 6
    assert released("idle") == before + 1


async def test_items_that_arrive_while_the_device_is_busy_run_together(device):
    batcher = batches(device)
    device.free.clear()
    calls = submit(batcher, *range(6))  # all arrive before the worker runs
    await settle()
    device.free.set()
    assert await asyncio.gather(*calls) == [0, 2, 4, 6, 8, 10]
    assert device.batches == [[0, 1, 2, 3], [4, 5]]


async def test_bulk_items_fill_the_rest_of_a_batch(device):
    batcher = batches(device)
    calls = [await busy(device, batcher), *submit(batcher, 1, 2, 3, priority=BULK)]
    calls += submit(batcher, 4, 5, 6)
    await settle()
    device.free.set()
    await asyncio.gather(*calls)
    assert device.batches == [[0], [4, 5, 6, 1], [2, 3]]


async def test_bulk_items_leave_places_for_a_whole_batch_of_others(device):
    batcher = batches(device, max_size=10, max_queue=30)
    calls = [await busy(device, batcher), *submit(batcher, *range(20), priority=BULK)]
    await settle()
    with pytest.raises(Overloaded, match="20 requests are waiting"):
        await batcher.submit(9, BULK)
    device.free.set()
    await asyncio.gather(*calls)


async def test_only_items_of_one_kind_run_together(device):
    batcher = batches(device, max_size=2, kind=lambda item: item % 2)
    calls = [await busy(device, batcher), *submit(batcher, 1, 2, 3, 4, 5)]
    await settle()
    device.free.set()
    await asyncio.gather(*calls)
    assert device.batches == [[0], [1, 3], [2, 4], [5]]


async def test_bucketed_batches_have_only_the_sizes_of_compiled_graphs(device):
    batcher = batches(device, max_size=8, bucketed=True)
    calls = [await busy(device, batcher), *submit(batcher, *range(7))]
    await settle()
    device.free.set()
    await asyncio.gather(*calls)
    assert [len(batch) for batch in device.batches] == [1, 4, 2, 1]


async def test_a_full_batch_runs_although_more_items_are_coming(device):
    batcher = batches(device, max_size=2)
    before = released("full")
    with batcher.coming(NOW):
        assert await asyncio.gather(*submit(batcher, 1, 2)) == [2, 4]
    assert released("full") == before + 1


async def test_a_batch_waits_for_an_item_that_is_coming(device):
    batcher = batches(device)
    with batcher.coming(NOW):
        calls = submit(batcher, 1)
        await settle()
        assert device.batches == []
    calls += submit(batcher, 2)
    assert await asyncio.gather(*calls) == [2, 4]
    assert device.batches == [[1, 2]]


async def test_a_batch_waits_no_longer_than_allowed(device):
    batcher = batches(device, max_wait_s=0.001)
    before = released("waited")
    with batcher.coming(NOW):
        assert await batcher.submit(1, NOW) == 2
    assert released("waited") == before + 1


async def test_the_wait_is_counted_from_the_arrival_of_the_oldest_item(device, clock):
    batcher = batches(device, max_wait_s=60)
    calls = [await busy(device, batcher)]
    with batcher.coming(NOW):
        calls += submit(batcher, 1)
        await settle()
        clock.now += 60
        device.free.set()
        assert await asyncio.gather(*calls) == [0, 2]


async def test_costs_limit_a_batch_and_no_item_overtakes_a_large_one(device):
    costs = {0: 1.0, 1: 2.0, 2: 3.5, 3: 9.0, 4: 1.0, 5: 5.0, 6: 0.5}
    batcher = batches(device, max_size=6, cost=costs.__getitem__)
    calls = [await busy(device, batcher), *submit(batcher, 1, 2, 3, 4, 5, 6)]
    await settle()
    device.free.set()
    await asyncio.gather(*calls)
    assert device.batches == [[0], [1, 2], [3], [4, 5], [6]]


async def test_an_item_whose_cost_fills_a_batch_does_not_wait(device):
    batcher = batches(device, cost=lambda item: 4)
    with batcher.coming(NOW):
        assert await batcher.submit(1, NOW) == 2


async def test_the_size_can_change_while_items_wait(device):
    batcher = batches(device, max_size=2)
    calls = [await busy(device, batcher), *submit(batcher, *range(1, 7))]
    await settle()
    batcher.tune(max_size=6, max_wait_s=0)
    device.free.set()
    await asyncio.gather(*calls)
    assert device.batches == [[0], [1, 2, 3, 4, 5, 6]]


async def test_a_shorter_wait_applies_at_once(device):
    batcher = batches(device)
    with batcher.coming(NOW):
        (call,) = submit(batcher, 1)
        await settle()
        assert device.batches == []
        batcher.tune(max_size=4, max_wait_s=0)
        assert await call == 2


async def test_two_batches_run_at_once_where_allowed(device):
    batcher = batches(device, max_size=2, at_once=2)
    device.free.clear()
    calls = submit(batcher, 1, 2, 3, 4, 5, 6)
    await settle()
    assert device.batches == [[1, 2], [3, 4]]
    device.free.set()
    assert await asyncio.gather(*calls) == [2, 4, 6, 8, 10, 12]
    assert device.batches[2:] == [[5, 6]]


async def test_only_the_item_at_fault_fails_and_the_others_run_again(device):
    batcher = batches(device)
    calls = [await busy(device, batcher)]
    device.poison = 2
    calls += submit(batcher, 1, 2, 3, 4)
    await settle()
    device.free.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(results.pop(2), ZeroDivisionError)
    assert results == [0, 2, 6, 8]
    assert device.batches == [[0], [1, 2, 3, 4], [1], [2], [3], [4]]


async def test_a_cancelled_item_does_not_run_again_with_its_failed_batch(device):
    batcher = batches(device)
    device.poison = 2
    device.free.clear()
    calls = submit(batcher, 1, 2, 3)
    await settle()
    calls[0].cancel()
    await settle()
    device.free.set()
    await asyncio.gather(*calls, return_exceptions=True)
    assert device.batches == [[1, 2, 3], [2], [3]]


async def test_a_wrong_number_of_results_fails_the_batch_and_not_the_worker():
    async def short(items: list[int]) -> list[int]:
        return items[1:]

    batcher = Batcher[int, int](short, part="test", max_size=4, max_wait_s=0, max_queue=9)
    for _ in range(2):
        results = await asyncio.gather(*submit(batcher, 1, 2), return_exceptions=True)
        assert [type(result) for result in results] == [ValueError, ValueError]
