"""Dynamic batching on one event loop, in front of one device.

A batch is released when it is full, when nothing else is on its way (the device never idles for
the sake of a larger batch), or when its oldest item has waited long enough. Sizes come in buckets,
so compiled graphs are reused; what does not fill a bucket goes with the next batch, right after.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from samclip_core.errors import Overloaded, Unavailable
from services import metrics

Item = TypeVar("Item")
Result = TypeVar("Result")


def buckets(max_size: int) -> tuple[int, ...]:
    """The batch sizes that are ever run: powers of two, and the largest one."""
    powers = (1 << exponent for exponent in range(max_size.bit_length()))
    return tuple(sorted({*powers, max_size}))


@dataclass(eq=False)
class _Entry(Generic[Item, Result]):
    item: Item
    future: asyncio.Future[Result]
    since: float = field(default_factory=time.monotonic)


class Batcher(Generic[Item, Result]):
    """Runs items in batches, one batch at a time, in the order in which they came.

    ``run`` gets a list of items and returns a list of as many results. It must not fail because of
    one item: what it raises goes to all callers of that batch.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Awaitable[Sequence[Result]]],
        *,
        max_size: int,
        max_wait_s: float,
        max_queue: int,
    ):
        self._run = run
        self._buckets = buckets(max_size)
        self._max_wait_s = max_wait_s
        self._max_queue = max_queue
        self._queue: deque[_Entry[Item, Result]] = deque()
        self._coming = 0
        self._changed = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._closed = False

    def __len__(self) -> int:
        """Items that wait for the device."""
        return len(self._queue)

    @contextmanager
    def coming(self) -> Iterator[None]:
        """Announce an item that is being prepared: it is worth waiting for.

        Raises Overloaded where it would find the queue full.
        """
        if self._coming + len(self._queue) >= self._max_queue:
            metrics.SHED.labels("queue_full").inc()
            raise Overloaded(f"{self._max_queue} images are waiting already: try again in a second")
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1
            self._changed.set()

    async def submit(self, item: Item) -> Result:
        """Run one item with others; a caller that is cancelled leaves the others alone."""
        if self._closed:
            raise Unavailable("this replica is shutting down: try again")
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        entry = _Entry[Item, Result](item, asyncio.get_running_loop().create_future())
        self._queue.append(entry)
        self._changed.set()
        return await entry.future

    async def close(self) -> None:
        """Take no more items, finish those that wait."""
        self._closed = True
        self._changed.set()
        if self._worker is not None:
            await self._worker

    async def _work(self) -> None:
        while batch := await self._next():
            try:
                results = await self._run([entry.item for entry in batch])
                for entry, result in zip(batch, results, strict=True):
                    if not entry.future.done():
                        entry.future.set_result(result)
            except Exception as error:
                for entry in batch:
                    if not entry.future.done():
                        entry.future.set_exception(error)

    async def _next(self) -> list[_Entry[Item, Result]]:
        """Wait for the next batch; empty when closed and done."""
        free = time.monotonic()
        while True:
            self._changed.clear()
            self._drop_abandoned()
            reason, wait_s = self._reason()
            if reason:
                return self._release(reason, free)
            if self._closed and not self._queue:
                return []
            try:
                await asyncio.wait_for(self._changed.wait(), wait_s)
            except TimeoutError:
                continue

    def _drop_abandoned(self) -> None:
        """Callers that gave up, or whose time is over, cancelled their future."""
        waiting = len(self._queue)
        self._queue = deque(entry for entry in self._queue if not entry.future.done())
        if waiting != len(self._queue):
            metrics.SHED.labels("abandoned").inc(waiting - len(self._queue))

    def _reason(self) -> tuple[str, float | None]:
        """Why the batch goes now; or an empty reason, and for how long to wait at most."""
        if not self._queue:
            return "", None
        if len(self._queue) >= self._buckets[-1]:
            return "full", None
        if not self._coming or self._closed:
            return "idle", None
        wait_s = self._queue[0].since + self._max_wait_s - time.monotonic()
        return ("waited", None) if wait_s <= 0 else ("", wait_s)

    def _release(self, reason: str, free: float) -> list[_Entry[Item, Result]]:
        size = max(bucket for bucket in self._buckets if bucket <= len(self._queue))
        batch = [self._queue.popleft() for _ in range(size)]
        now = time.monotonic()
        for entry in batch:
            ready = min(max(entry.since, free), now)
            metrics.STAGE_SECONDS.labels("queue").observe(ready - entry.since)
            metrics.STAGE_SECONDS.labels("batch_wait").observe(now - ready)
        metrics.BATCH_SIZE.observe(size)
        metrics.BATCH_RELEASE.labels(reason).inc()
        return batch
