"""Draw photographs from several sets."""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from training.data.order import Order
from training.data.sample import BadSample, Sample
from training.data.sources import open_source

log = logging.getLogger(__name__)
T = TypeVar("T")

TRIES = 100  # photographs for one slot


class Pool:
    """Photographs of several sets in the order of ``Order``; unusable ones are skipped."""

    def __init__(
        self,
        data: str,
        sets: Sequence[tuple[str, float]],
        images: int,
        key: Sequence[int],
        held_out: bool = False,
    ) -> None:
        """``sets``: folders in ``data``, each with its weight relative to its size.

        ``images``: the slots of a step; ``key``: the seed.
        """
        self.sources = [open_source(f"{data}/{name}") for name, _ in sets]
        self.order = Order(self.sources, [weight for _, weight in sets], images, key, held_out)
        self.bad: set[tuple[str, int]] = set()

    def draw(
        self,
        step: int,
        slot: int,
        random: np.random.Generator,
        make: Callable[[Sample], T | None],
    ) -> T:
        """Draw photographs for a slot until ``make(sample)`` returns a result; return it.

        Broken photographs are logged once, added to ``bad`` and skipped. Raises ValueError after
        ``TRIES`` unusable photographs in a row.
        """
        turn = self.order.draw(step, slot)
        for _ in range(TRIES):
            number, index = turn.source, turn.sample()
            try:
                made = make(self.sources[number][index])
            except BadSample as error:
                if (error.source, index) not in self.bad:
                    self.bad.add((error.source, index))
                    log.warning("skipped: %s (%d so far)", error, len(self.bad))
                made = None
            if made is not None:
                return made
            turn = self.order.other(step, slot, random)
        raise ValueError(
            f"{TRIES} photographs in a row were unusable ({len(self.bad)} broken): check the "
            f"sets {[source.name for source in self.sources]}"
        )
