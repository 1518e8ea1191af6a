"""Draw photographs from several sets."""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from training.data.order import Held, Order
from training.data.sample import BadSample, Sample
from training.data.sources import Read, open_source

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
        held: Held,
    ) -> None:
        """``sets``: folders in ``data``, each with its weight relative to its size.

        ``images``: the slots of a step; ``key``: the seed.
        """
        self.sources = [open_source(f"{data}/{name}") for name, _ in sets]
        self.order = Order(self.sources, [weight for _, weight in sets], images, key, held)
        self.bad: set[tuple[str, int]] = set()

    def read(self, step: int, slots: Sequence[int]) -> list[tuple[int, int, Read]]:
        """Read the files of some slots of a step, of each source at once.

        Returns the source, the index there, and what makes the sample of each slot.
        """
        turns = [self.order.draw(step, slot) for slot in slots]
        read: dict[tuple[int, int], Read] = {}
        for number in {source for source, _ in turns}:
            wanted = sorted({index for source, index in turns if source == number})
            found = self.sources[number].read(wanted)
            read |= {(number, index): made for index, made in zip(wanted, found, strict=True)}
        return [(*turn, read[turn]) for turn in turns]

    def draw(
        self,
        first: tuple[int, int, Read],
        random: np.random.Generator,
        make: Callable[[Sample], T | None],
    ) -> T:
        """Take the photograph that was read for a slot, then others, until ``make`` has a result.

        Broken photographs are logged once, added to ``bad`` and skipped. Raises ValueError after
        ``TRIES`` unusable photographs in a row.
        """
        number, index, sample = first
        for _ in range(TRIES):
            try:
                made = make(sample())
            except BadSample as error:
                if (error.source, index) not in self.bad:
                    self.bad.add((error.source, index))
                    log.warning("skipped: %s (%d so far)", error, len(self.bad))
                made = None
            if made is not None:
                return made
            number, index = self.order.other(random)
            (sample,) = self.sources[number].read([index])
        raise ValueError(
            f"{TRIES} photographs in a row were unusable ({len(self.bad)} broken): check the "
            f"sets {[source.name for source in self.sources]}"
        )
