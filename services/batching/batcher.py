"""Dynamic batching on top of the queue: several of its items run together.

A batch is released when it is full, when no other item is being prepared (the device never idles
only to get a larger batch), or when its oldest item has waited for the maximum time. Interactive
items go first and bulk items fill the rest.
"""

import logging
from collections.abc import Awaitable, Callable, Hashable, Sequence

from services.batching.admission import URGENT
from services.batching.queue import Item, Queue, Result, Waiting

logger = logging.getLogger(__name__)


def prompts_per_step(device: str, batch: int) -> int:
    """Return how many prompts of a long request the SAM head runs before other items get a turn.

    A GPU runs 64 in a few milliseconds and would be underused with fewer.
    """
    return batch if device == "cpu" else max(64, batch)


class Batcher(Queue[Item, Result]):
    """A queue whose items run in batches.

    ``max_size`` limits the sum of the costs in a batch; an item that costs more runs alone. Only
    items of the same kind run together. With ``bucketed`` only batches of ``sizes`` run, so that
    compiled graphs are reused; the other items wait for the next batch. If a batch fails, its items
    run again one by one, so that only the item at fault fails.
    """

    def __init__(  # noqa: PLR0913 - the queue's, and those of batches
        self,
        run: Callable[[list[Item]], Awaitable[Sequence[Result]]],
        *,
        part: str,
        max_size: int,
        max_wait_s: float,
        max_queue: int,
        at_once: int = 1,
        bucketed: bool = False,
        cost: Callable[[Item], float] = lambda item: 1,
        kind: Callable[[Item], Hashable] = lambda item: None,
    ):
        super().__init__(run, part=part, max_queue=max_queue, at_once=at_once)
        self._bucketed = bucketed
        self._cost = cost
        self._kind = kind
        self.tune(max_size, max_wait_s)

    def tune(self, max_size: int, max_wait_s: float) -> None:
        """Set the limits of the next batches."""
        self._max_size, self._max_wait_s = max_size, max_wait_s
        self._reserved = max(max_size, URGENT)
        self._changed.set()

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of batches with ``bucketed``: powers of two, and the largest."""
        powers = (1 << exponent for exponent in range(self._max_size.bit_length()))
        return tuple(sorted({*powers, self._max_size}))

    def _choose(self, now: float) -> tuple[list[Waiting[Item, Result]], str, float | None]:
        if not self._waiting:
            return [], "", None
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
        return batch, reason, None

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

    async def _failed(self, chosen: list[Waiting[Item, Result]], error: Exception) -> None:
        if len(chosen) > 1:
            logger.warning(
                "a batch of %d failed: running its items one by one", len(chosen), exc_info=error
            )
            for waiting in chosen:
                if not waiting.future.done():
                    await self._execute([waiting])
        else:
            await super()._failed(chosen, error)
