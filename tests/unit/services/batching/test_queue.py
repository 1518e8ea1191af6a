"""Which items are admitted, in what order they run, and which of them never run."""

import asyncio
import gc
import weakref

import pytest

from samclip_core.errors import DeadlineExceeded, Overloaded, Unavailable
from services.batching import admission
from services.batching.admission import PATIENCE_S
from services.batching.priority import Priority
from services.batching.queue import Queue
from services.observability import metrics
from tests.shown import shown
from tests.unit.services.batching.device import (
    BULK,
    NOW,
    Device,
    busy,
    finish,
    make,
    settle,
    shed,
    submit,
)


async def paced(device, queue, clock, seconds: float) -> None:
    """Let one item take this long, so that the queue expects it of the next ones."""
    first = await busy(device, queue)
    clock.now += seconds
    device.free.set()
    await first


async def test_items_run_one_by_one_in_order(device):
    queue = make(device)
    device.free.clear()
    calls = await submit(queue, 1, 2, 3)
    assert shown(metrics.QUEUE.labels("test")) == len(queue) == 2
    assert await finish(device, calls) == [2, 4, 6]
    assert shown(metrics.QUEUE.labels("test")) == 0
    assert device.batches == [[1], [2], [3]]


async def test_interactive_items_go_before_bulk_items(device):
    """A bulk item counts as interactive once an interactive caller joins it."""
    queue, shared = make(device), Priority(bulk=True)
    calls = [await busy(device, queue), *await submit(queue, 1, 2, priority=BULK)]
    calls += [*await submit(queue, 5, priority=shared), *await submit(queue, 3, 4)]
    shared.join(NOW)
    await finish(device, calls)
    assert device.batches == [[0], [5], [3], [4], [1], [2]]


async def test_bulk_items_are_not_starved(device, clock):
    queue = make(device)
    calls = [await busy(device, queue), *await submit(queue, 1, priority=BULK)]
    clock.now += PATIENCE_S
    calls += [*await submit(queue, 2, priority=BULK), *await submit(queue, 3)]
    await finish(device, calls)
    assert device.batches == [[0], [1], [3], [2]]


async def test_bulk_items_leave_places_for_interactive_ones(device):
    queue = make(device, max_queue=5)
    calls = [await busy(device, queue), *await submit(queue, 1, 2, 3, priority=BULK)]
    with pytest.raises(Overloaded, match="3 requests are waiting"):
        await queue.submit(9, BULK)
    calls += await submit(queue, 4, 5)
    with pytest.raises(Overloaded, match="5 requests are waiting"):
        await queue.submit(9, NOW)
    assert await finish(device, calls) == [0, 2, 4, 6, 8, 10]


async def test_waiting_bulk_items_do_not_refuse_interactive_ones(device, clock):
    queue = make(device)
    await paced(device, queue, clock, 1)
    calls = [await busy(device, queue), *await submit(queue, *range(10), priority=BULK)]
    soon = clock.now + 4
    with pytest.raises(Overloaded, match="the queue takes about"):
        queue.admit(Priority(soon, bulk=True))
    queue.admit(Priority(soon))
    await finish(device, calls)


async def test_items_that_are_being_prepared_have_places_in_the_queue(device):
    queue = make(device, max_queue=2)
    calls = [await busy(device, queue), *await submit(queue, 1)]
    with queue.coming(NOW), pytest.raises(Overloaded, match="2 requests"), queue.coming(NOW):
        pass
    assert await finish(device, calls) == [0, 2]
    with queue.coming(NOW):
        pass  # the queue has space again


async def test_an_item_that_would_miss_its_deadline_is_refused_at_once(device, clock):
    """At 2 s per item, a third one in the queue cannot finish within 4 s."""
    queue = make(device)
    await paced(device, queue, clock, 2)
    device.free.clear()
    calls = await submit(
        queue, 1, priority=Priority(deadline=clock.now + 0.1)
    )  # the device is idle
    calls += await submit(queue, 2, priority=Priority(deadline=clock.now + 6))
    before = shed("no_time")
    with pytest.raises(Overloaded, match=r"in 4\.0 s, but the queue takes about 9\.0 s"):
        await queue.submit(3, Priority(deadline=clock.now + 4))
    assert shed("no_time") == before + 1
    calls += await submit(queue, 4, priority=Priority(deadline=clock.now + 10))
    assert await finish(device, calls) == [2, 4, 8]


@pytest.mark.parametrize("pace_s", [0.001, 10.0])
async def test_a_deadline_that_has_passed_is_never_called_overload(device, clock, pace_s):
    """This holds for an idle device and with a full queue, at any pace."""
    queue = make(device, max_queue=1)
    with pytest.raises(DeadlineExceeded, match="set a later deadline"):
        await queue.submit(1, Priority(deadline=clock.now))
    await paced(device, queue, clock, pace_s)
    calls = [await busy(device, queue), *await submit(queue, 2)]
    with pytest.raises(DeadlineExceeded, match="set a later deadline"):
        await queue.submit(3, Priority(deadline=clock.now))
    await finish(device, calls)


async def test_too_little_time_even_for_an_empty_queue_is_not_called_overload(device, clock):
    queue = make(device)
    await paced(device, queue, clock, 2)
    running = await busy(device, queue)
    before = shed("expired")
    with pytest.raises(DeadlineExceeded, match=r"0\.02 s are left until the deadline"):
        queue.admit(Priority(deadline=clock.now + 0.02))
    with pytest.raises(DeadlineExceeded, match=r"25 s are left until the deadline"):
        queue.admit(Priority(deadline=clock.now + 25), work=10)
    assert shed("expired") == before + 2
    device.free.set()
    await running


async def test_small_and_large_items_are_expected_by_their_work(device, clock):
    """A large item has taken 10 s, so a small one, of a tenth of the work, is expected in 1 s."""
    queue = make(device)
    await paced(device, queue, clock, 10)
    device.free.clear()
    (small,) = await submit(queue, 1, work=0.1)
    in_11_s, in_2_s = (Priority(clock.now + admission.SLACK * s) for s in (11.1, 2.1))
    with queue.coming(NOW, work=0.1), pytest.raises(Overloaded, match=r"about 18\.0 s"):
        queue.admit(in_11_s)
    queue.admit(in_11_s)
    queue.admit(in_2_s, work=0.1)
    clock.now += 1
    device.free.set()
    assert await small == 2
    assert queue._admission.pace_s == pytest.approx(10)


async def test_items_that_run_concurrently_are_counted_once_in_the_expected_wait(device, clock):
    queue = make(device, at_once=2)
    device.free.clear()
    calls = await submit(queue, 1, 2)
    clock.now += 2.0
    await finish(device, calls)
    # The first item counts two seconds; the second, finished at the same time, counts none.
    pace_s = queue._admission.pace_s
    assert pace_s == pytest.approx(2.0 * (1 - admission.LATEST_WEIGHT))
    device.free.clear()
    calls = await submit(queue, 5, 6)
    with pytest.raises(Overloaded, match="the queue takes about"):
        queue.admit(Priority(clock.now + 0.99 * admission.SLACK * 3 * pace_s))
    queue.admit(Priority(clock.now + 1.01 * admission.SLACK * 3 * pace_s))
    await finish(device, calls)


async def test_expired_items_never_run(device, clock):
    queue = make(device)
    first = await busy(device, queue)
    late = await submit(queue, 1, 2, priority=Priority(deadline=1003.0))
    in_time = await submit(queue, 3, priority=Priority(deadline=1003.5))
    before = shed("expired")
    clock.now = 1003.0
    assert await finish(device, [first, *in_time]) == [0, 6]
    for call in late:
        with pytest.raises(DeadlineExceeded, match=r"waited 3\.0 s"):
            await call
    assert device.batches == [[0], [3]]
    assert shed("expired") == before + 2


async def test_an_item_may_wait_until_the_latest_deadline_of_its_callers(device, clock):
    queue = make(device)
    first = await busy(device, queue)
    shared = Priority(deadline=1001.0)
    (call,) = await submit(queue, 1, priority=shared)
    shared.join(Priority(deadline=1010.0))
    clock.now = 1005.0
    assert await finish(device, [first, call]) == [0, 2]


async def test_cancelled_items_never_run_and_make_room(device):
    queue = make(device, max_queue=3)
    first = await busy(device, queue)
    calls = await submit(queue, 1, 2, 3)
    for call in calls[:2]:
        call.cancel()
    await settle()
    calls += await submit(queue, 4, 5)
    assert await finish(device, [first, *calls[2:]]) == [0, 6, 8, 10]
    assert device.batches == [[0], [3], [4], [5]]


async def test_a_failure_reaches_its_caller_alone(device):
    queue = make(device)
    device.poison = 2
    calls = await submit(queue, 1, 2, 3)
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(results.pop(1), ZeroDivisionError)
    assert results == [2, 6]


async def test_the_next_item_is_at_the_device_where_two_may_run(device):
    queue = make(device, at_once=2)
    device.free.clear()
    calls = await submit(queue, 1, 2, 3)
    assert device.batches == [[1], [2]]
    assert await finish(device, calls) == [2, 4, 6]
    await queue.close()


async def test_closing_finishes_all_items_and_takes_no_more(device):
    queue = make(device, at_once=2)
    device.free.clear()
    calls = await submit(queue, 1, 2, 3)
    closing = asyncio.create_task(queue.close())
    await settle()
    assert not closing.done()
    with pytest.raises(Unavailable, match="shutting down"):
        await queue.submit(9, NOW)
    device.free.set()
    await closing
    assert [call.result() for call in calls] == [2, 4, 6]


def of(tenant: str, **fields: float) -> Priority:
    return Priority(tenant=tenant, **fields)


async def test_tenants_take_turns(device):
    queue = make(device)
    calls = [await busy(device, queue), *await submit(queue, *range(10, 16), priority=of("ann"))]
    calls += await submit(queue, 20, 21, priority=of("bob"))
    calls += await submit(queue, 30, priority=of("eve"))
    await finish(device, calls)
    assert device.batches == [[n] for n in (0, 10, 20, 30, 11, 21, 12, 13, 14, 15)]


async def test_a_turn_counts_by_its_work(device):
    queue = make(device)
    calls = [
        await busy(device, queue),
        *await submit(queue, 10, 11, priority=of("ann"), work=3),
        *await submit(queue, *range(20, 25), priority=of("bob")),
    ]
    await finish(device, calls)
    assert device.batches == [[n] for n in (0, 10, 20, 21, 22, 11, 23, 24)]


async def test_a_turn_whose_length_nobody_knew_counts_by_its_time(device, clock):
    """Of three tenants, one with a large picture, one with many small ones, one with both."""

    async def run(items):
        clock.now += items[0] % 10
        return await Device.run(device, items)

    device.run = run
    queue = make(device, alike=False)
    calls = [
        await busy(device, queue),
        *await submit(queue, 19, 29, priority=of("ann")),
        *await submit(queue, *[31] * 12, priority=of("bob")),
        *await submit(queue, 41, 55, 61, 71, priority=of("eve")),
    ]
    await finish(device, calls)
    done = [batch[0] for batch in device.batches[1:]]
    assert done == [19, 31, 41, 31, 55, *[31] * 4, 61, 31, 71, 31, 31, 29, 31, 31, 31]


async def test_a_tenant_without_work_saves_no_turns(device):
    """Nor does one lose turns by work that was done while nobody else waited, but for the last."""
    queue = make(device)
    for number in range(5):
        await (await submit(queue, number, priority=of("ann")))[0]
    device.batches.clear()
    calls = [
        await busy(device, queue),
        *await submit(queue, 20, 21, 22, priority=of("bob")),
        *await submit(queue, 10, 11, 12, priority=of("ann")),
    ]
    await finish(device, calls)
    assert device.batches == [[n] for n in (0, 20, 21, 10, 22, 11, 12)]


async def test_cancelled_items_cost_their_tenant_no_turns(device):
    queue = make(device)
    first, gone = await busy(device, queue), await submit(queue, *range(9), priority=of("ann"))
    for call in gone:
        call.cancel()
    calls = await submit(queue, 20, 21, priority=of("bob"))
    calls += await submit(queue, 10, 11, priority=of("ann"))
    await finish(device, [first, *calls])
    assert device.batches == [[n] for n in (0, 20, 10, 21, 11)]


async def test_bulk_work_of_a_tenant_takes_turns_with_bulk_work_alone(device, clock):
    queue, calls = make(device), []
    calls.append(await busy(device, queue))
    calls += await submit(queue, 10, 11, 12, priority=of("ann", bulk=True))
    calls += await submit(queue, 20, 21, priority=of("bob", bulk=True))
    calls += await submit(queue, 13, priority=of("ann"))
    await finish(device, calls)
    assert device.batches == [[n] for n in (0, 13, 20, 10, 21, 11, 12)]


async def test_the_expected_wait_is_that_of_turns(device, clock):
    """Beside 40 items of another tenant, 1 s each: one runs, and one may run before the first."""
    queue = make(device)
    await paced(device, queue, clock, 1)
    calls = [await busy(device, queue), *await submit(queue, *range(40), priority=of("ann"))]
    with pytest.raises(Overloaded, match=r"about 63\.0 s"):
        queue.admit(of("ann", deadline=clock.now + 60))
    queue.admit(of("bob", deadline=clock.now + admission.SLACK * 3 + 0.1))
    with pytest.raises(Overloaded, match=r"about 4\.5 s"):
        queue.admit(of("bob", deadline=clock.now + admission.SLACK * 3 - 0.1))
    with queue.coming(of("bob")), pytest.raises(Overloaded, match=r"about 7\.5 s"):
        queue.admit(of("bob", deadline=clock.now + 7))
    await finish(device, calls)


async def test_a_tenant_that_fills_the_queue_leaves_the_others_their_part(device):
    queue = make(device, max_queue=4)
    calls = [await busy(device, queue), *await submit(queue, *range(1, 5), priority=of("ann"))]
    calls += await submit(queue, 20, 21, priority=of("bob"))
    for tenant in ("ann", "bob"):
        with pytest.raises(Overloaded, match="4 requests are waiting"):
            queue.admit(of(tenant))
    calls += await submit(queue, 30, priority=of("eve"))
    with pytest.raises(Overloaded):
        queue.admit(of("eve"))
    await finish(device, calls)


async def test_work_that_stops_leaves_the_device_when_its_caller_has_gone(device):
    queue = Queue(device.run, part="test", max_queue=9, stops=True)
    gone, calls = await busy(device, queue), await submit(queue, 1, 2)
    gone.cancel()
    await settle()
    assert device.batches == [[0], [1]]
    assert await finish(device, calls) == [2, 4]
    await queue.close()


async def test_a_queue_without_work_has_no_task(device):
    await (await submit(make(device), 1))[0]
    await settle()
    assert len(asyncio.all_tasks()) == 1


async def test_a_failed_item_is_freed_with_its_error(device):
    """A reference cycle would keep it, and with it an index that should be closed."""

    class Failing:
        def __call__(self) -> None:
            raise ZeroDivisionError

    async def run(items: list[Failing]) -> list[None]:
        return [item() for item in items]

    queue, item = Queue(run, part="test", max_queue=9), Failing()
    alive = weakref.ref(item)
    gc.disable()
    try:
        with pytest.raises(ZeroDivisionError):
            await queue.submit(item, NOW)
        del item
        await settle()
        assert alive() is None
    finally:
        gc.enable()
    await queue.close()


async def test_later_steps_take_turns_with_other_items_and_the_oldest_go_first(device, clock):
    queue = make(device)
    calls = [await busy(device, queue)]
    for item, begun in ((10, 30.0), (11, 10.0), (12, 20.0)):
        calls.append(asyncio.create_task(queue.submit(item, NOW, begun=begun)))
    await settle()
    calls += await submit(queue, 1, 2)
    await finish(device, calls)
    assert device.batches == [[n] for n in (0, 11, 1, 12, 2, 10)]


async def test_later_steps_are_expected_after_those_of_older_work_alone(device, clock):
    queue = make(device)
    await paced(device, queue, clock, 1)
    calls = [await busy(device, queue)]
    calls += [asyncio.create_task(queue.submit(n, NOW, begun=float(n))) for n in range(2, 42)]
    await settle()
    soon = Priority(deadline=clock.now + admission.SLACK * 3 + 0.1)
    queue.admit(soon, begun=1.0)
    with pytest.raises(Overloaded):
        queue.admit(soon, begun=50.0)
    await finish(device, calls)


async def test_later_steps_of_bulk_work_are_not_starved(device, clock):
    queue = make(device)
    calls = [await busy(device, queue), *await submit(queue, 1)]
    old = clock.now - PATIENCE_S
    calls.append(asyncio.create_task(queue.submit(2, of("ann", bulk=True), begun=old)))
    await settle()
    calls += await submit(queue, 3)
    await finish(device, calls)
    assert device.batches == [[0], [2], [1], [3]]


async def test_the_caller_of_work_that_is_cancelled_from_inside_does_not_wait_for_ever():
    async def run(items: list[int]) -> list[int]:
        raise asyncio.CancelledError

    queue = Queue(run, part="test", max_queue=9)
    async with asyncio.timeout(60):
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(queue.submit(1, NOW))
    await queue.close()
