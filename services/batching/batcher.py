"""Dynamic batching on one event loop, in front of one device.

A batch is released when it is full, when no other item is being prepared (the device never idles
only to get a larger batch), or when its oldest item has waited for the maximum time. Interactive
items go first and bulk items fill the rest. Cancelled items are never run.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass, field
from time import monotonic
from typing import Generic, TypeVar

from opentelemetry.trace import Span

from samclip_core.errors import DeadlineExceeded, Overloaded, Unavailable
from services.observability import metrics, tracing
from services.request.priority import Priority

PATIENCE_S = 5.0
"""Bulk items that have waited this long count as interactive, so that they never starve."""

URGENT = 8
"""Places in the queue reserved for interactive items: this many or a batch, at most half of it."""
SLACK = 1.5
"""Safety factor on the expected wait: an item that misses its deadline wastes device time."""
LATEST = 0.2
"""Weight of the newest batch in the moving average of the time per cost."""

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


def buckets(max_size: int) -> tuple[int, ...]:
    """Return the batch sizes of a bucketed batcher: powers of two, and ``max_size``."""
    powers = (1 << exponent for exponent in range(max_size.bit_length()))
    return tuple(sorted({*powers, max_size}))


def prompts_per_step(device: str, batch: int) -> int:
    """Return how many prompts of a long request the SAM head runs before other items get a turn.

    A GPU runs 64 in a few milliseconds and would be underused with fewer.
    """
    return batch if device == "cpu" else max(64, batch)


@dataclass(eq=False)
class _Entry(Generic[Item, Result]):
    item: Item
    cost: float
    priority: Priority
    future: asyncio.Future[Result]
    span: Span
    since: float = field(default_factory=lambda: monotonic())

    def yields(self, now: float) -> bool:
        """Return whether interactive items go first."""
        return self.priority.bulk and now - self.since < PATIENCE_S


class Batcher(Generic[Item, Result]):
    """A queue whose items run in batches, by priority and then in the order of arrival.

    ``run`` gets a list of items and returns a list of as many results. If a batch fails, its items
    run again one by one, so that only the item at fault fails. ``part`` is the label in metrics.
    ``max_size`` limits the sum of the costs in a batch. ``at_once`` batches run concurrently: with
    two, the device has the next batch when it ends one. With ``bucketed`` only the sizes of
    ``buckets`` run, so that compiled graphs are reused; the other items wait for the next batch.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Awaitable[Sequence[Result]]],
        *,
        part: str,
        max_size: int,
        max_wait_s: float,
        max_queue: int,
        at_once: int = 1,
        bucketed: bool = False,
    ):
        self._run = run
        self._part = part
        self._max_size = max_size
        self._max_wait_s = max_wait_s
        self._max_queue = max_queue
        self._at_once = at_once
        self._bucketed = bucketed
        self._queue: list[_Entry[Item, Result]] = []  # in the order of arrival
        self._coming = 0
        self._running: list[float] = []  # costs of the running batches
        self._pace_s = 0.0  # device time per cost of 1
        self._turn = 0.0  # when the device last began to work, or ended a batch
        self._changed = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._closed = False
        self._length = metrics.QUEUE.labels(part)

    def __len__(self) -> int:
        """Return how many items wait for the device."""
        return len(self._queue)

    def tune(self, max_size: int, max_wait_s: float) -> None:
        """Set the limits of the next batches."""
        self._max_size, self._max_wait_s = max_size, max_wait_s
        self._changed.set()

    def admit(self, priority: Priority, cost: float = 1) -> None:
        """Check whether one more item can be queued and done before its deadline.

        Raises Overloaded if the queue is full or the wait too long. Raises DeadlineExceeded if the
        time left is too short even for an empty queue, so that a retry could not succeed either.
        """
        now = monotonic()
        left_s = priority.deadline - now
        if left_s <= 0:
            raise self._too_late(left_s)
        spare = min(max(self._max_size, URGENT), self._max_queue // 2) if priority.bulk else 0
        room = self._max_queue - spare
        self._drop()  # cancelled items make room
        if self._coming + len(self._queue) >= room:
            metrics.SHED.labels("queue_full").inc()
            raise Overloaded(f"{room} requests are waiting already: try again in a second")
        wait_s = SLACK * self._expected_s(now, priority, cost)
        if wait_s <= left_s:
            return
        if SLACK * self._pace_s * cost > left_s:
            raise self._too_late(left_s)
        metrics.SHED.labels("no_time").inc()
        raise Overloaded(
            f"the deadline is in {left_s:.1f} s, but the queue takes about {wait_s:.1f} s: "
            "try again later, or with a later deadline"
        )

    def _too_late(self, left_s: float) -> DeadlineExceeded:
        metrics.SHED.labels("expired").inc()
        return DeadlineExceeded(
            f"{max(left_s, 0.0):.2g} s are left until the deadline, which is too short: "
            "set a later deadline"
        )

    @contextmanager
    def coming(self, priority: Priority) -> Iterator[None]:
        """Announce an item that is being prepared, so that a batch may wait for it.

        Raises the errors of ``admit``.
        """
        self.admit(priority)
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1
            self._changed.set()

    async def submit(self, item: Item, priority: Priority, cost: float = 1) -> Result:
        """Run one item in a batch and return its result. Cancellation does not affect other items.

        ``priority`` may change while the item waits. An item that costs more than ``max_size`` runs
        alone. Raises DeadlineExceeded, Overloaded, Unavailable, and the errors of ``run``.
        """
        if self._closed:
            raise Unavailable("this replica is shutting down: try again")
        self.admit(priority, cost)
        if self._worker is None:
            # An empty context: the worker serves all requests.
            self._worker = asyncio.create_task(self._work(), context=Context())
        with tracing.span(f"wait for {self._part}") as span:
            future = asyncio.get_running_loop().create_future()
            self._queue.append(_Entry[Item, Result](item, cost, priority, future, span))
            self._length.set(len(self._queue))
            self._changed.set()
            return await future

    async def close(self) -> None:
        """Refuse new items and finish the queued ones."""
        self._closed = True
        self._changed.set()
        if self._worker is not None:
            await self._worker

    def _expected_s(self, now: float, priority: Priority, cost: float) -> float:
        """Return the time until one more item would be done; 0 if the device is idle."""
        before = (entry for entry in self._queue if priority.bulk or not entry.yields(now))
        waiting = self._coming + sum(entry.cost for entry in before)
        running_s = max(0.0, sum(self._running) * self._pace_s - (now - self._turn))
        return running_s + self._pace_s * (waiting + cost) if waiting or running_s else 0.0

    async def _work(self) -> None:
        running: set[asyncio.Task[None]] = set()
        while batch := await self._next():
            running.add(asyncio.create_task(self._execute(batch)))
            del batch  # free its images while this waits for the next batch
            if len(running) == self._at_once:
                _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        if running:
            await asyncio.wait(running)

    async def _execute(self, batch: list[_Entry[Item, Result]]) -> None:
        try:
            with (
                tracing.shared(f"batch of {self._part}", [entry.span for entry in batch]),
                self._timed(sum(entry.cost for entry in batch)),
            ):
                results = await self._run([entry.item for entry in batch])
            answered = list(zip(batch, results, strict=True))
        except Exception as error:
            if len(batch) > 1:
                logger.warning(
                    "a batch of %d failed: running its items one by one", len(batch), exc_info=True
                )
                for entry in batch:
                    if not entry.future.done():
                        await self._execute([entry])
            elif not batch[0].future.done():
                batch[0].future.set_exception(error)
            return
        for entry, result in answered:
            if not entry.future.done():
                entry.future.set_result(result)

    @contextmanager
    def _timed(self, cost: float) -> Iterator[None]:
        """Update the average device time per cost with a batch."""
        if not self._running:
            self._turn = monotonic()
        self._running.append(cost)
        try:
            yield
            pace_s = (monotonic() - self._turn) / cost
            self._pace_s += (LATEST if self._pace_s else 1) * (pace_s - self._pace_s)
        finally:
            self._running.remove(cost)
            self._turn = monotonic()

    async def _next(self) -> list[_Entry[Item, Result]]:
        """Wait for the next batch and return it; empty once closed and done."""
        free = monotonic()
        while True:
            self._changed.clear()
            self._drop()
            batch, full = self._foremost()
            reason, wait_s = self._reason(full)
            if reason:
                return self._release(batch, reason, free)
            if self._closed and not self._queue:
                return []
            try:
                await asyncio.wait_for(self._changed.wait(), wait_s)
            except TimeoutError:
                continue

    def _drop(self) -> None:
        """Remove cancelled and expired items from the queue."""
        now = monotonic()
        for entry in self._queue:
            if entry.future.done():
                metrics.SHED.labels("abandoned").inc()
            elif entry.priority.deadline <= now:
                metrics.SHED.labels("expired").inc()
                entry.future.set_exception(
                    DeadlineExceeded(
                        f"waited {now - entry.since:.1f} s for the device until the deadline: "
                        "try again later, or with a later deadline"
                    )
                )
        self._queue = [entry for entry in self._queue if not entry.future.done()]
        self._length.set(len(self._queue))

    def _foremost(self) -> tuple[list[_Entry[Item, Result]], bool]:
        """Return the items that go next, and whether they fill a batch."""
        now = monotonic()
        batch: list[_Entry[Item, Result]] = []
        cost = 0.0
        for entry in sorted(self._queue, key=lambda entry: entry.yields(now)):
            # Smaller items do not overtake a large one, which could then wait for ever.
            if batch and cost + entry.cost > self._max_size:
                return batch, True
            batch.append(entry)
            cost += entry.cost
        return batch, cost >= self._max_size

    def _reason(self, full: bool) -> tuple[str, float | None]:
        """Return why the batch is released now; or "" and the longest time to wait."""
        if not self._queue:
            return "", None
        if full:
            return "full", None
        if not self._coming or self._closed:
            return "idle", None
        wait_s = self._queue[0].since + self._max_wait_s - monotonic()
        return ("waited", None) if wait_s <= 0 else ("", wait_s)

    def _release(
        self, batch: list[_Entry[Item, Result]], reason: str, free: float
    ) -> list[_Entry[Item, Result]]:
        if self._bucketed:
            batch = batch[: max(size for size in buckets(self._max_size) if size <= len(batch))]
        gone = set(batch)
        self._queue = [entry for entry in self._queue if entry not in gone]
        self._length.set(len(self._queue))
        now = monotonic()
        for entry in batch:
            ready = min(max(entry.since, free), now)
            metrics.STAGE_SECONDS.labels("queue").observe(ready - entry.since)
            metrics.STAGE_SECONDS.labels("batch_wait").observe(now - ready)
        metrics.BATCH_SIZE.labels(self._part).observe(len(batch))
        metrics.BATCH_RELEASE.labels(self._part, reason).inc()
        return batch
