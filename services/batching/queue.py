"""The items that wait for a device, and which of them form the next batch."""

import asyncio
from dataclasses import dataclass, field
from time import monotonic
from typing import Generic, TypeVar

from opentelemetry.trace import Span

from samclip_core.errors import DeadlineExceeded
from services.observability import metrics
from services.request.context import Priority

PATIENCE_S = 5.0
"""Bulk items that have waited this long count as interactive, so that they never starve."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def buckets(max_size: int) -> tuple[int, ...]:
    """Return the batch sizes of a bucketed batcher: powers of two, and ``max_size``."""
    powers = (1 << exponent for exponent in range(max_size.bit_length()))
    return tuple(sorted({*powers, max_size}))


@dataclass(eq=False)
class Entry(Generic[Item, Result]):
    """An item with its share of a batch, ``cost``, and of the device's time, ``work``."""

    item: Item
    cost: float
    work: float
    kind: int
    priority: Priority
    future: asyncio.Future[Result]
    span: Span
    since: float = field(default_factory=lambda: monotonic())

    def yields(self, now: float) -> bool:
        """Return whether interactive items go first."""
        return self.priority.bulk and now - self.since < PATIENCE_S


class Queue(Generic[Item, Result]):
    """Items in the order of arrival. ``part`` is the label in metrics."""

    def __init__(self, part: str):
        self.entries: list[Entry[Item, Result]] = []
        self._part = part
        self._length = metrics.QUEUE.labels(part)

    def __len__(self) -> int:
        return len(self.entries)

    def append(self, entry: Entry[Item, Result]) -> None:
        """Add an item that has just arrived."""
        self.entries.append(entry)
        self._length.set(len(self.entries))

    def work_before(self, now: float, priority: Priority) -> float:
        """Return the work of the items that would run before a new one."""
        before = (entry for entry in self.entries if priority.bulk or not entry.yields(now))
        return sum(entry.work for entry in before)

    def drop(self) -> None:
        """Remove cancelled and expired items from the queue."""
        now = monotonic()
        for entry in self.entries:
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
        self._replace([entry for entry in self.entries if not entry.future.done()])

    def foremost(self, max_size: int) -> tuple[list[Entry[Item, Result]], bool]:
        """Return the items that go next, all of one kind, and whether they fill a batch."""
        now = monotonic()
        batch: list[Entry[Item, Result]] = []
        cost = 0.0
        for entry in sorted(self.entries, key=lambda entry: entry.yields(now)):
            if batch and entry.kind != batch[0].kind:
                continue
            # Smaller items do not overtake a large one, which could then wait for ever.
            if batch and cost + entry.cost > max_size:
                return batch, True
            batch.append(entry)
            cost += entry.cost
        return batch, cost >= max_size

    def release(self, batch: list[Entry[Item, Result]], reason: str, free: float) -> None:
        """Take a batch out of the queue; the device has been free since ``free``."""
        gone = set(batch)
        self._replace([entry for entry in self.entries if entry not in gone])
        now = monotonic()
        for entry in batch:
            ready = min(max(entry.since, free), now)
            metrics.STAGE_SECONDS.labels("queue").observe(ready - entry.since)
            metrics.STAGE_SECONDS.labels("batch_wait").observe(now - ready)
        metrics.BATCH_SIZE.labels(self._part).observe(len(batch))
        metrics.BATCH_RELEASE.labels(self._part, reason).inc()

    def _replace(self, entries: list[Entry[Item, Result]]) -> None:
        self.entries = entries
        self._length.set(len(entries))
