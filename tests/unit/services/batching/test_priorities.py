"""Interactive work goes before bulk work, which is not starved."""

import asyncio

import pytest

from samclip_core.errors import Overloaded
from services.batching.queue import PATIENCE_S
from services.request.context import Priority
from tests.unit.services.batching.device import (
    BULK,
    NOW,
    Device,
    busy,
    make,
    settle,
    submit,
)


async def test_bulk_work_that_waits_does_not_refuse_interactive_work(clock):
    device = Device()
    batcher = make(device, max_size=1)
    first = await busy(device, batcher)
    clock.now += 1
    device.free.set()
    await first
    calls = [await busy(device, batcher), *submit(batcher, *range(10), priority=BULK)]
    await settle()
    soon = Priority(deadline=clock.now + 4)
    with pytest.raises(Overloaded, match="the queue takes about"):
        batcher.admit(Priority(soon.deadline, bulk=True))
    batcher.admit(soon)
    device.free.set()
    await asyncio.gather(*calls)


async def test_interactive_work_goes_first_and_bulk_fills_the_rest():
    device = Device()
    batcher = make(device)
    first = await busy(device, batcher)
    calls = [*submit(batcher, 1, 2, 3, priority=BULK), *submit(batcher, 4, 5, 6)]
    await settle()
    device.free.set()
    await asyncio.gather(first, *calls)
    assert device.batches == [[0], [4, 5, 6, 1], [2, 3]]


async def test_bulk_work_is_not_starved(clock):
    device = Device()
    batcher = make(device, max_size=2)
    first = await busy(device, batcher)
    old = submit(batcher, 1, priority=BULK)
    await settle()
    clock.now += PATIENCE_S
    calls = [*submit(batcher, 2, priority=BULK), *submit(batcher, 3, 4)]
    await settle()
    device.free.set()
    await asyncio.gather(first, *old, *calls)
    assert device.batches == [[0], [1, 3], [4, 2]]


async def test_bulk_work_that_an_interactive_caller_joins_goes_first():
    device = Device()
    batcher = make(device, max_size=1)
    first = await busy(device, batcher)
    shared = Priority(bulk=True)
    calls = [*submit(batcher, 1, priority=BULK), *submit(batcher, 2, priority=shared)]
    await settle()
    shared.join(NOW)
    device.free.set()
    await asyncio.gather(first, *calls)
    assert device.batches == [[0], [2], [1]]


async def test_bulk_work_leaves_room_in_the_queue_for_a_batch_of_other_work():
    device = Device()
    batcher = make(device, max_size=2, max_queue=5)
    first = await busy(device, batcher)
    calls = submit(batcher, 1, 2, 3, priority=BULK)
    await settle()
    with pytest.raises(Overloaded, match="3 requests are waiting"):
        await batcher.submit(9, BULK)
    calls += submit(batcher, 4, 5)
    await settle()
    with pytest.raises(Overloaded, match="5 requests are waiting"):
        await batcher.submit(9, NOW)
    device.free.set()
    assert await asyncio.gather(first, *calls) == [0, 2, 4, 6, 8, 10]
