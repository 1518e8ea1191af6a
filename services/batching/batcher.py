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
from time import monotonic
from typing import Generic

from samclip_core.errors import Unavailable
from services.batching.admission import Admission
from services.batching.queue import Entry, Item, Queue, Result, buckets
from services.observability import tracing
from services.request.context import Priority

logger = logging.getLogger(__name__)


def prompts_per_step(device: str, batch: int) -> int:
    """Return how many prompts of a long request the SAM head runs before other items get a turn.

    A GPU runs 64 in a few milliseconds and would be underused with fewer.
    """
    return batch if device == "cpu" else max(64, batch)


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
        self._at_once = at_once
        self._bucketed = bucketed
        self._queue = Queue[Item, Result](part)
        self._admission = Admission(self._queue, max_queue)
        self._changed = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._closed = False

    def __len__(self) -> int:
        """Return how many items wait for the device."""
        return len(self._queue)

    def tune(self, max_size: int, max_wait_s: float) -> None:
        """Set the limits of the next batches."""
        self._max_size, self._max_wait_s = max_size, max_wait_s
        self._changed.set()

    def admit(self, priority: Priority, work: float = 1) -> None:
        """Check whether one more item can be queued and done before its deadline.

        ``work`` is its share of the device's time, relative to the other items. Raises
        Overloaded if the queue is full or the wait too long. Raises DeadlineExceeded if the time
        left is too short even for an empty queue, so that a retry could not succeed either.
        """
        self._admission.check(priority, work, self._max_size)

    @contextmanager
    def coming(self, priority: Priority, work: float = 1) -> Iterator[None]:
        """Announce an item that is being prepared, so that a batch may wait for it.

        Raises the errors of ``admit``.
        """
        self.admit(priority, work)
        try:
            with self._admission.preparing(work):
                yield
        finally:
            self._changed.set()

    async def submit(
        self,
        item: Item,
        priority: Priority,
        cost: float = 1,
        kind: int = 0,
        work: float | None = None,
    ) -> Result:
        """Run one item in a batch and return its result. Cancellation does not affect other items.

        ``priority`` may change while the item waits. An item that costs more than ``max_size`` runs
        alone, and only items of the same ``kind`` run together. ``work`` as in ``admit`` (None:
        ``cost``). Raises DeadlineExceeded, Overloaded, Unavailable, and the errors of ``run``.
        """
        work = cost if work is None else work
        if self._closed:
            raise Unavailable("this replica is shutting down: try again")
        self.admit(priority, work)
        if self._worker is None:
            # An empty context: the worker serves all requests.
            self._worker = asyncio.create_task(self._work(), context=Context())
        with tracing.span(f"wait for {self._part}") as span:
            future = asyncio.get_running_loop().create_future()
            self._queue.append(Entry[Item, Result](item, cost, work, kind, priority, future, span))
            self._changed.set()
            return await future

    async def close(self) -> None:
        """Refuse new items and finish the queued ones."""
        self._closed = True
        self._changed.set()
        if self._worker is not None:
            await self._worker

    async def _work(self) -> None:
        running: set[asyncio.Task[None]] = set()
        while batch := await self._next():
            running.add(asyncio.create_task(self._execute(batch)))
            del batch  # free its images while this waits for the next batch
            if len(running) == self._at_once:
                _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        if running:
            await asyncio.wait(running)

    async def _execute(self, batch: list[Entry[Item, Result]]) -> None:
        try:
            with (
                tracing.shared(f"batch of {self._part}", [entry.span for entry in batch]),
                self._admission.timed(sum(entry.work for entry in batch)),
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

    async def _next(self) -> list[Entry[Item, Result]]:
        """Wait for the next batch and return it; empty once closed and done."""
        free = monotonic()
        while True:
            self._changed.clear()
            self._queue.drop()
            batch, full = self._queue.foremost(self._max_size)
            reason, wait_s = self._reason(full)
            if reason:
                if self._bucketed:
                    fits = max(size for size in buckets(self._max_size) if size <= len(batch))
                    batch = batch[:fits]
                self._queue.release(batch, reason, free)
                return batch
            if self._closed and not self._queue:
                return []
            try:
                await asyncio.wait_for(self._changed.wait(), wait_s)
            except TimeoutError:
                continue

    def _reason(self, full: bool) -> tuple[str, float | None]:
        """Return why the batch is released now; or "" and the longest time to wait."""
        if not self._queue:
            return "", None
        if full:
            return "full", None
        if not self._admission.coming or self._closed:
            return "idle", None
        wait_s = self._queue.entries[0].since + self._max_wait_s - monotonic()
        return ("waited", None) if wait_s <= 0 else ("", wait_s)
