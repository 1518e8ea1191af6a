import asyncio
from types import SimpleNamespace

import pytest

from samclip_core.errors import DeadlineExceeded, Overloaded, Unavailable
from services.batching import admission, queue
from services.batching import batcher as batching
from services.batching.batcher import Batcher
from services.batching.queue import PATIENCE_S, buckets
from services.observability import metrics
from services.request.priority import Priority

NOW, BULK = Priority(), Priority(bulk=True)


class Device:
    """A device that doubles numbers while ``free`` is set, and fails on the item ``poison``."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.free = asyncio.Event()
        self.free.set()
        self.failure: Exception | None = None
        self.poison: int | None = None

    async def run(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        await self.free.wait()
        if self.failure:
            raise self.failure
        if self.poison in items:
            raise ZeroDivisionError(self.poison)
        return [2 * item for item in items]


def make(
    device: Device,
    max_size: int = 4,
    max_wait_s: float = 60.0,
    max_queue: int = 100,
    at_once: int = 1,
):
    return Batcher[int, int](
        device.run,
        part="test",
        max_size=max_size,
        max_wait_s=max_wait_s,
        max_queue=max_queue,
        at_once=at_once,
        bucketed=True,
    )


def submit(batcher: Batcher[int, int], *items: int, priority: Priority = NOW, cost: float = 1):
    return [asyncio.create_task(batcher.submit(item, priority, cost)) for item in items]


async def busy(device: Device, batcher: Batcher[int, int]) -> asyncio.Task[int]:
    """Block the device with the item 0, so that others have to wait."""
    device.free.clear()
    (first,) = submit(batcher, 0)
    await settle()
    return first


def released(reason: str) -> float:
    return metrics.BATCH_RELEASE.labels("test", reason)._value.get()


def shed(reason: str) -> float:
    return metrics.SHED.labels(reason)._value.get()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Replace the batcher's clock by one that only advances when ``now`` is set."""
    clock = SimpleNamespace(now=1000.0)
    for module in (admission, batching, queue):
        monkeypatch.setattr(module, "monotonic", lambda: clock.now)
    return clock


async def settle() -> None:
    """Run all tasks that are ready."""
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
