"""Draw photographs at random from several sets, training and held-out ones apart."""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from training.data.sample import BadSample, Sample
from training.data.sources import Source, open_source

log = logging.getLogger(__name__)
T = TypeVar("T")

HELD_OUT = 50  # one photograph in this many of each set is held out for validation
TRIES = 100


class Pool:
    """Photographs of several sets, drawn at random; unusable ones are skipped."""

    def __init__(self, data: str, sets: Sequence[tuple[str, float]], held_out: bool) -> None:
        """``sets``: folders in ``data``, each with its weight relative to its size."""
        self.sources = [open_source(f"{data}/{name}") for name, _ in sets]
        self.held_out = held_out
        weights = np.array([weight for _, weight in sets])
        sizes = np.array([len(source) for source in self.sources])
        self.share = weights * sizes / (weights * sizes).sum()
        self.bad: set[tuple[str, int]] = set()

    def draw(self, rng: np.random.Generator, make: Callable[[Sample, int], T | None]) -> T:
        """Draw photographs until ``make(sample, index)`` returns a result, and return it.

        Broken photographs are logged once, added to ``bad`` and skipped. Raises ValueError after
        ``TRIES`` unusable photographs in a row.
        """
        for _ in range(TRIES):
            source = self.sources[rng.choice(len(self.sources), p=self.share)]
            index = _index(source, rng, self.held_out)
            try:
                made = make(source[index], index)
            except BadSample as error:
                if (source.name, index) not in self.bad:
                    self.bad.add((source.name, index))
                    log.warning("skipped: %s (%d so far)", error, len(self.bad))
                continue
            if made is not None:
                return made
        raise ValueError(
            f"{TRIES} photographs in a row were unusable ({len(self.bad)} broken): check the "
            f"sets {[source.name for source in self.sources]}"
        )


def _index(source: Source, rng: np.random.Generator, held_out: bool) -> int:
    """Draw the index of a training or a held-out photograph; small sets hold none out."""
    groups, place = divmod(len(source), HELD_OUT)
    if not groups:
        return int(rng.integers(len(source)))
    if held_out:
        return int(rng.integers(groups)) * HELD_OUT + HELD_OUT - 1
    index = int(rng.integers(groups * (HELD_OUT - 1) + place))
    return index + index // (HELD_OUT - 1)
