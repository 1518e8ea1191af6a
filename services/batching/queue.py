"""A priority queue in front of one device, on one event loop, whose items may run in batches.

An item is admitted if it can be done before its deadline. Interactive items go first, then bulk
items. Among each, tenants take turns, and the items of a tenant run in the order of arrival.
Cancelled and expired items never run. A batch is released when it is full, when no other item is
being prepared (the device never idles only to get a larger batch), or when its oldest item has
waited for the maximum time.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, Generic, TypeVar

from opentelemetry.trace import Span

from samclip_core.errors import DeadlineExceeded, Unavailable
from services.batching.admission import SLACK, URGENT, Admission, Claim, Turns
from services.batching.priority import Priority
from services.observability import metrics, tracing

Item = TypeVar("Item")
Result = TypeVar("Result")

WORK_PER_S = 1000.0
"""What a second counts of an item that is not like the others: far more than its mere start."""
ENDING = "this replica is shutting down: try again"
logger = logging.getLogger(__name__)


def prompts_per_step(device: str, batch: int) -> int:
    """Return how many prompts of a long request the SAM head runs before other items get a turn.

    A GPU takes only a few milliseconds for 64, and fewer would leave it idle.
    """
    return batch if device == "cpu" else max(64, batch)


@dataclass(eq=False, repr=False)
class Waiting(Claim, Generic[Item, Result]):
    """An item in the queue."""

    item: Item
    future: asyncio.Future[Result]
    span: Span


class Queue(Generic[Item, Result]):
    """A queue whose items run one by one, ``at_once`` concurrently, or in batches.

    With two at once, the device has the next item when it ends one. ``run`` gets a list of items
    and returns as many results. ``part`` is the label in metrics. With ``stops``, ``run`` is
    cancelled when the caller of its item has gone. Unless the items are ``alike``, nobody knows how
    long they take: they are refused for their number alone, and count by their time once they end.

    ``max_size`` limits the sum of the costs in a batch; an item that costs more runs alone. Only
    items of the same kind run together. With ``bucketed`` only batches of ``sizes`` run, so that
    compiled graphs are reused; the other items wait for the next batch. If a batch fails, its items
    run again one by one, so that only the item at fault fails.
    """

    def __init__(  # noqa: PLR0913 - those of batches are rarely given
        self,
        run: Callable[[list[Item]], Awaitable[Sequence[Result]]],
        *,
        part: str,
        max_queue: int,
        at_once: int = 1,
        stops: bool = False,
        alike: bool = True,
        max_size: int = 1,
        max_wait_s: float = 0.0,
        bucketed: bool = False,
        cost: Callable[[Item], float] = lambda item: 1,
        kind: Callable[[Item], Hashable] = lambda item: None,
    ):
        self._run = run
        self._part, self._length = part, metrics.QUEUE.labels(part)
        self._at_once, self._stops, self._alike = at_once, stops, alike
        self._waiting: list[Waiting[Item, Result]] = []
        self._admission = Admission(max_queue)
        self._turns = Turns()
        self._bucketed, self._cost, self._kind = bucketed, cost, kind
        self._running = set[asyncio.Task[None]]()
        self._free = 0.0  # since when a place may be free
        self._alarm: asyncio.TimerHandle | None = None
        self._closed = False
        self.tune(max_size, max_wait_s)

    def __len__(self) -> int:
        return len(self._waiting)

    def tune(self, max_size: int, max_wait_s: float) -> None:
        """Set the limits of the next batches."""
        self._max_size, self._max_wait_s = max_size, max_wait_s
        self._reserved = max(max_size, URGENT)
        self._look()

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of batches with ``bucketed``: powers of two, and the largest."""
        powers = (1 << exponent for exponent in range(self._max_size.bit_length()))
        return tuple(sorted({*powers, self._max_size}))

    def admit(self, priority: Priority, work: float = 1, begun: float = 0.0) -> None:
        """Check whether one more item can be queued and done before its deadline.

        ``work`` is its share of the device's time, relative to the other items. Raises
        Overloaded if the queue is full or the wait too long. Raises DeadlineExceeded if the time
        left is too short even for an empty queue, so that a retry could not succeed either.
        """
        self._drop()  # cancelled items make room
        claim = Claim(work, priority, begun=begun)
        # Work that has begun is finished if possible: refusing it would waste the time spent.
        slack = 1.0 if begun else SLACK
        self._admission.check(claim, self._waiting, self._reserved, slack)

    @contextmanager
    def coming(self, priority: Priority, work: float = 1) -> Iterator[None]:
        """Announce an item that is being prepared. Raises the errors of ``admit``."""
        self.admit(priority, work)
        coming = Claim(work, priority)
        self._admission.coming.append(coming)
        try:
            yield
        finally:
            self._admission.coming.remove(coming)
            self._look()

    @contextmanager
    def in_pieces(self, priority: Priority, work: float) -> Iterator[Claim]:
        """Announce work that is submitted in pieces, and yield a claim to what is left of it.

        The caller lowers the claim's ``work`` by that of each piece, and submits the piece with its
        ``begun``. Raises the errors of ``admit``; DeadlineExceeded even if the device is idle.
        """
        rest = Claim(work, priority, begun=monotonic())
        self._admission.check(rest, self._waiting, self._reserved)
        self._admission.rests.append(rest)
        try:
            yield rest
        finally:
            self._admission.rests.remove(rest)

    async def submit(
        self, item: Item, priority: Priority, work: float = 1, begun: float = 0.0
    ) -> Result:
        """Run one item and return its result. Cancellation does not affect other items.

        ``priority`` may change while the item waits. ``work`` as in ``admit``, ``begun`` as in
        ``Claim``. Raises DeadlineExceeded, Overloaded, Unavailable, and the errors of ``run``.
        """
        if self._closed:
            raise Unavailable(ENDING)
        self.admit(priority, work, begun)
        with tracing.span(f"wait for {self._part}") as span:
            future = asyncio.get_running_loop().create_future()
            waiting = Waiting[Item, Result](work, priority, item, future, span, begun=begun)
            self._replace([*self._waiting, waiting])
            if self._max_size == 1:
                self._start()  # nothing can run together with it
            else:
                self._look()
            try:
                return await future
            finally:
                # An error's traceback keeps this frame, and they keep the error.
                del future, waiting

    def refuse(self) -> None:
        """Refuse new items, and those that wait."""
        self._closed = True
        for waiting in self._waiting:
            if not waiting.future.done():
                waiting.future.set_exception(Unavailable(ENDING))
        self._replace([])

    async def close(self) -> None:
        """Refuse new items and finish the queued ones."""
        self._closed = True
        self._start()
        while self._running:
            await asyncio.wait(self._running)
            await asyncio.sleep(0)  # their places go to the next ones

    def _look(self) -> None:
        """Start items soon: those that are submitted at the same time may run together."""
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._start)

    def _start(self) -> None:
        """Run the items whose turn it is, as far as there are places."""
        self._drop()
        while self._waiting and len(self._running) < self._at_once:
            chosen, reason, wait_s = self._choose(monotonic())
            if not chosen:
                if self._alarm is not None:
                    self._alarm.cancel()
                self._alarm = asyncio.get_running_loop().call_later(wait_s, self._start)
                return
            self._release(chosen, reason)
            # An empty context: what runs may be of several requests.
            task = asyncio.create_task(self._execute(chosen), context=Context())
            self._running.add(task)
            task.add_done_callback(partial(self._ended, chosen, monotonic()))
            if self._stops:
                chosen[0].future.add_done_callback(partial(_stop, task))

    def _ended(
        self, chosen: list[Waiting[Item, Result]], since: float, task: asyncio.Task[None]
    ) -> None:
        self._running.discard(task)
        self._free = monotonic()
        if not self._alike:  # one item, of which nobody knew before how long it takes
            self._turns.add(chosen[0], WORK_PER_S * (self._free - since))
        self._start()

    def _choose(self, now: float) -> tuple[list[Waiting[Item, Result]], str, float]:
        """Return the items to run now, with the reason in metrics; or none, and how long to wait.

        The wait ends early when an item arrives, or one that was coming has come.
        """
        batch, full = self._foremost(now)
        wait_s = self._waiting[0].since + self._max_wait_s - now
        if full:
            reason = "full"
        elif not self._admission.coming or self._closed:
            reason = "idle"
        elif wait_s <= 0:
            reason = "waited"
        else:
            return [], "", wait_s
        if self._bucketed:
            batch = batch[: max(size for size in self.sizes if size <= len(batch))]
        return batch, reason, 0.0

    def _foremost(self, now: float) -> tuple[list[Waiting[Item, Result]], bool]:
        """Return the items that go next, all of one kind, and whether they fill a batch."""
        first, *others = self._by_priority(now)
        batch, cost = [first], self._cost(first.item)
        for waiting in others:
            if self._kind(waiting.item) != self._kind(first.item):
                continue
            # Smaller items do not overtake a large one, which could then wait for ever.
            if cost + self._cost(waiting.item) > self._max_size:
                return batch, True
            batch.append(waiting)
            cost += self._cost(waiting.item)
        return batch, cost >= self._max_size

    def _by_priority(self, now: float) -> list[Waiting[Item, Result]]:
        return sorted(self._waiting, key=lambda waiting: self._turns.order(waiting, now))

    def _drop(self) -> None:
        """Remove cancelled and expired items from the queue."""
        now = monotonic()
        for waiting in self._waiting:
            if waiting.future.done():
                metrics.SHED.labels("abandoned").inc()
            elif waiting.priority.deadline <= now:
                metrics.SHED.labels("expired").inc()
                waiting.future.set_exception(
                    DeadlineExceeded(
                        f"waited {now - waiting.since:.1f} s for the device until the deadline: "
                        "try again later, or with a later deadline"
                    )
                )
        if any(waiting.future.done() for waiting in self._waiting):
            self._replace([waiting for waiting in self._waiting if not waiting.future.done()])

    def _release(self, chosen: list[Waiting[Item, Result]], reason: str) -> None:
        """Take items out of the queue."""
        self._replace([waiting for waiting in self._waiting if waiting not in chosen])
        self._turns.took(chosen)
        if not self._alike:  # the figures are of runs of a model
            return
        now = monotonic()
        for waiting in chosen:
            ready = min(max(waiting.since, self._free), now)
            metrics.STAGE_SECONDS.labels("queue").observe(ready - waiting.since)
            metrics.STAGE_SECONDS.labels("batch_wait").observe(now - ready)
        metrics.BATCH_SIZE.labels(self._part).observe(len(chosen))
        metrics.BATCH_RELEASE.labels(self._part, reason).inc()

    def _replace(self, waiting: list[Waiting[Item, Result]]) -> None:
        self._length.inc(len(waiting) - len(self._waiting))  # of one of several queues
        self._waiting = waiting

    async def _execute(self, chosen: list[Waiting[Item, Result]]) -> None:
        """Run items and give each caller its result, or the error."""
        try:
            with (
                tracing.shared(f"batch of {self._part}", [waiting.span for waiting in chosen]),
                self._admission.timed(
                    sum(waiting.work for waiting in chosen),
                    paced=self._alike and not all(each.priority.is_own for each in chosen),
                ),
            ):
                results = await self._run([waiting.item for waiting in chosen])
            answered = list(zip(chosen, results, strict=True))
        except asyncio.CancelledError:
            for waiting in chosen:
                waiting.future.cancel()  # if ``run`` was cancelled from inside, its callers wait
            raise
        except Exception as error:
            await self._failed(chosen, error)
            del chosen  # as in ``submit``
            return
        for waiting, result in answered:
            if not waiting.future.done():
                waiting.future.set_result(result)

    async def _failed(self, chosen: list[Waiting[Item, Result]], error: Exception) -> None:
        if len(chosen) > 1:
            logger.warning("a batch of %d failed: its items run alone", len(chosen), exc_info=error)
        for waiting in chosen:
            if not waiting.future.done():
                if len(chosen) > 1:
                    await self._execute([waiting])
                else:
                    waiting.future.set_exception(error)


def _stop(task: asyncio.Task[None], future: asyncio.Future[Any]) -> None:
    if future.cancelled():
        task.cancel()
