"""Dynamic batching on one event loop, in front of one device.

A batch is released when it is full, when nothing else is on its way (the device never idles for
the sake of a larger batch), or when its oldest item has waited long enough. Interactive work goes
first and bulk work fills the rest; what nobody waits for any more is never run.
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
"""Bulk work that has waited this long counts as interactive, so that it is never starved."""

URGENT = 8
"""Places in the queue that bulk work leaves free; a batch's where those are more; half at most."""
SLACK = 1.5
"""A wait may turn out this much longer than it is expected to be: what ends too late was for
nothing."""
LATEST = 0.2
"""Weight of the newest batch in the mean of how long one takes."""

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


def buckets(max_size: int) -> tuple[int, ...]:
    """The batch sizes that are ever run: powers of two, and the largest one."""
    powers = (1 << exponent for exponent in range(max_size.bit_length()))
    return tuple(sorted({*powers, max_size}))


def prompts_per_step(device: str, batch: int) -> int:
    """How many prompts of long work go to the SAM head together, before others get their turn.

    A GPU is through with 64 in a few milliseconds, and would be idle with fewer.
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
        """Whether interactive work goes before it."""
        return self.priority.bulk and now - self.since < PATIENCE_S


class Batcher(Generic[Item, Result]):
    """Runs items in batches, by priority, then in the order of their arrival.

    ``run`` gets a list of items and returns a list of as many results. A batch that fails is run
    again item by item, so that only the guilty one's caller gets the error. ``part`` names in the
    metrics what runs. ``max_size`` bounds the sum of the costs in a batch. ``at_once`` batches run
    at the same time: with two, a device that ends one has the next already. With ``bucketed`` only
    the sizes of ``buckets`` are run, so that compiled graphs are reused; what does not fill one
    goes with the next batch, right after.
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
        self._running: list[float] = []  # the costs of the batches that run
        self._pace_s = 0.0  # that the device needs for a cost of 1
        self._turn = 0.0  # when it last began with something: at first, or when it ended a batch
        self._changed = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._closed = False
        self._length = metrics.QUEUE.labels(part)

    def __len__(self) -> int:
        """Items that wait for the device."""
        return len(self._queue)

    def tune(self, max_size: int, max_wait_s: float) -> None:
        """Other limits from the next batch on."""
        self._max_size, self._max_wait_s = max_size, max_wait_s
        self._changed.set()

    def admit(self, priority: Priority, cost: float = 1) -> None:
        """Raise Overloaded where one more would find the queue full, or wait beyond its deadline.

        Raises DeadlineExceeded where it has no time left, or too little even without a queue: no
        later attempt with so little time would succeed.
        """
        now = monotonic()
        left_s = priority.deadline - now
        if left_s <= 0:
            raise self._too_late(left_s)
        # Bulk work leaves room for what is more urgent.
        spare = min(max(self._max_size, URGENT), self._max_queue // 2) if priority.bulk else 0
        room = self._max_queue - spare
        self._drop()  # who has gone makes room
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
            f"the deadline is in {left_s:.1f} s, and what waits already takes about "
            f"{wait_s:.1f} s: try again later, or with more time"
        )

    def _too_late(self, left_s: float) -> DeadlineExceeded:
        metrics.SHED.labels("expired").inc()
        return DeadlineExceeded(
            f"{max(left_s, 0.0):.2g} s are left until the deadline, not enough for the answer: "
            "send the request with more time"
        )

    @contextmanager
    def coming(self, priority: Priority) -> Iterator[None]:
        """Announce an item that is being prepared: it is worth waiting for. Raises Overloaded."""
        self.admit(priority)
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1
            self._changed.set()

    async def submit(self, item: Item, priority: Priority, cost: float = 1) -> Result:
        """Run one item with others; a caller that is cancelled leaves the others alone.

        ``priority`` may change while the item waits. What costs more than ``max_size`` goes alone.
        Raises what ``run`` raises, DeadlineExceeded, Overloaded, Unavailable.
        """
        if self._closed:
            raise Unavailable("this replica is shutting down: try again")
        self.admit(priority, cost)
        if self._worker is None:
            # In no request's context: it works for all.
            self._worker = asyncio.create_task(self._work(), context=Context())
        with tracing.span(f"wait for {self._part}") as span:
            future = asyncio.get_running_loop().create_future()
            self._queue.append(_Entry[Item, Result](item, cost, priority, future, span))
            self._length.set(len(self._queue))
            self._changed.set()
            return await future

    async def close(self) -> None:
        """Take no more items, finish those that wait."""
        self._closed = True
        self._changed.set()
        if self._worker is not None:
            await self._worker

    def _expected_s(self, now: float, priority: Priority, cost: float) -> float:
        """Until one more item would be done; 0 for an idle device, whatever the last batch took."""
        before = (entry for entry in self._queue if priority.bulk or not entry.yields(now))
        waiting = self._coming + sum(entry.cost for entry in before)
        running_s = max(0.0, sum(self._running) * self._pace_s - (now - self._turn))
        return running_s + self._pace_s * (waiting + cost) if waiting or running_s else 0.0

    async def _work(self) -> None:
        running: set[asyncio.Task[None]] = set()
        while batch := await self._next():
            running.add(asyncio.create_task(self._execute(batch)))
            del batch  # its images are not kept while there is nothing to do
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
                logger.warning("a batch of %d failed, each alone now", len(batch), exc_info=True)
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
        """Learn from a batch how long the device takes."""
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
        """Wait for the next batch; empty when closed and done."""
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
        """Leave out those whose caller has gone, and those whose time is over."""
        now = monotonic()
        for entry in self._queue:
            if entry.future.done():
                metrics.SHED.labels("abandoned").inc()
            elif entry.priority.deadline <= now:
                metrics.SHED.labels("expired").inc()
                entry.future.set_exception(
                    DeadlineExceeded(
                        f"waited {now - entry.since:.1f} s for the device until the deadline: "
                        "try again later, or with more time"
                    )
                )
        self._queue = [entry for entry in self._queue if not entry.future.done()]
        self._length.set(len(self._queue))

    def _foremost(self) -> tuple[list[_Entry[Item, Result]], bool]:
        """Whose turn it is, and whether that is a full batch."""
        now = monotonic()
        batch: list[_Entry[Item, Result]] = []
        cost = 0.0
        for entry in sorted(self._queue, key=lambda entry: entry.yields(now)):
            # Smaller ones behind it do not overtake: it would wait for ever.
            if batch and cost + entry.cost > self._max_size:
                return batch, True
            batch.append(entry)
            cost += entry.cost
        return batch, cost >= self._max_size

    def _reason(self, full: bool) -> tuple[str, float | None]:
        """Why the batch goes now; or an empty reason, and for how long to wait at most."""
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
