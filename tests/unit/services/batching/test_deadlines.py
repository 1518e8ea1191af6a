"""Items whose time is short: refused, dropped, or expected to be late."""

import asyncio

import pytest

from samclip_core.errors import DeadlineExceeded, Overloaded
from services.batching import admission
from services.request.context import Priority
from tests.unit.services.batching.device import (
    NOW,
    Device,
    busy,
    make,
    settle,
    shed,
    submit,
)


async def test_what_would_wait_beyond_its_deadline_is_refused_at_once(clock):
    """At 2 s per batch of one, a third request in the queue cannot finish within 4 s."""
    device = Device()
    batcher = make(device, max_size=1)
    first = await busy(device, batcher)
    clock.now += 2
    device.free.set()
    await first
    device.free.clear()
    running = submit(batcher, 1, priority=Priority(deadline=clock.now + 0.1))  # the device is idle
    await settle()
    waiting = submit(batcher, 2, priority=Priority(deadline=clock.now + 6))
    await settle()
    before = shed("no_time")
    with pytest.raises(Overloaded, match=r"in 4\.0 s, but the queue takes about 9\.0 s"):
        await batcher.submit(3, Priority(deadline=clock.now + 4))
    assert shed("no_time") == before + 1
    later = submit(batcher, 4, priority=Priority(deadline=clock.now + 10))
    await settle()
    device.free.set()
    assert await asyncio.gather(*running, *waiting, *later) == [2, 4, 8]


@pytest.mark.parametrize("pace_s", [0.001, 10.0])
async def test_a_deadline_that_has_passed_is_never_called_overload(clock, pace_s):
    """This holds for an idle device, behind a queue and with a full queue, at any pace."""
    device = Device()
    batcher = make(device, max_size=1, max_queue=1)
    passed = Priority(deadline=clock.now)
    with pytest.raises(DeadlineExceeded, match="set a later deadline"):
        await batcher.submit(1, passed)
    first = await busy(device, batcher)
    clock.now += pace_s
    device.free.set()
    await first
    calls = [await busy(device, batcher), *submit(batcher, 2)]
    await settle()
    with pytest.raises(DeadlineExceeded, match="set a later deadline"):
        await batcher.submit(3, Priority(deadline=clock.now))
    device.free.set()
    await asyncio.gather(*calls)


async def test_too_little_time_even_without_a_queue_is_not_overload(clock):
    """At 2 s per batch of one, a deadline in 0.02 s cannot be met, with or without a queue."""
    device = Device()
    batcher = make(device, max_size=1)
    first = await busy(device, batcher)
    clock.now += 2
    device.free.set()
    await first
    calls = [await busy(device, batcher)]
    before = shed("expired")
    with pytest.raises(DeadlineExceeded, match=r"0\.02 s are left until the deadline"):
        await batcher.submit(2, Priority(deadline=clock.now + 0.02))
    with pytest.raises(DeadlineExceeded, match=r"25 s are left until the deadline"):
        await batcher.submit(2, Priority(deadline=clock.now + 25), cost=10)
    assert shed("expired") == before + 2
    device.free.set()
    await asyncio.gather(*calls)


async def test_small_and_large_items_are_expected_by_their_work(clock):
    """A large item has taken 10 s, so a small one, of a tenth of the work, is expected in 1 s."""
    device = Device()
    batcher = make(device, max_size=1)
    first = await busy(device, batcher)
    clock.now += 10
    device.free.set()
    await first
    device.free.clear()
    small = asyncio.create_task(batcher.submit(1, NOW, kind=336, work=0.1))
    await settle()
    in_11_s, in_2_s = (Priority(clock.now + admission.SLACK * s) for s in (11.1, 2.1))
    with batcher.coming(NOW, work=0.1), pytest.raises(Overloaded, match=r"about 18\.0 s"):
        batcher.admit(in_11_s)
    batcher.admit(in_11_s)
    batcher.admit(in_2_s, work=0.1)
    clock.now += 1
    device.free.set()
    assert await small == 2
    assert batcher._admission.pace_s == pytest.approx(10)


async def test_what_expired_is_dropped_before_execution(clock):
    device = Device()
    batcher = make(device)
    first = await busy(device, batcher)
    late = submit(batcher, 1, 2, priority=Priority(deadline=1003.0))
    in_time = submit(batcher, 3, priority=Priority(deadline=1003.5))
    await settle()
    before = shed("expired")
    clock.now = 1003.0
    device.free.set()
    assert await asyncio.gather(first, *in_time) == [0, 6]
    for call in late:
        with pytest.raises(DeadlineExceeded, match=r"waited 3\.0 s"):
            await call
    assert device.batches == [[0], [3]]
    assert shed("expired") == before + 2


async def test_a_deadline_that_another_caller_moved_counts(clock):
    device = Device()
    batcher = make(device)
    first = await busy(device, batcher)
    shared = Priority(deadline=1001.0)
    (call,) = submit(batcher, 1, priority=shared)
    await settle()
    shared.join(Priority(deadline=1010.0))
    clock.now = 1005.0
    device.free.set()
    assert await asyncio.gather(first, call) == [0, 2]


async def test_what_runs_side_by_side_is_counted_once_in_the_expected_wait(clock):
    device = Device()
    batcher = make(device, max_size=2, at_once=2)
    device.free.clear()
    calls = submit(batcher, 1, 2, 3, 4)
    await settle()
    clock.now += 2.0
    device.free.set()
    await asyncio.gather(*calls)
    # The first batch counts two seconds; the second, finished at the same time, counts none.
    assert batcher._admission.pace_s == pytest.approx(1.0 * (1 - admission.LATEST))
    device.free.clear()
    calls = submit(batcher, 5, 6, 7, 8)
    await settle()
    waits_s = 5 * batcher._admission.pace_s
    with pytest.raises(Overloaded, match="the queue takes about"):
        batcher.admit(Priority(clock.now + 0.99 * admission.SLACK * waits_s))
    batcher.admit(Priority(clock.now + 1.01 * admission.SLACK * waits_s))
    device.free.set()
    await asyncio.gather(*calls)
