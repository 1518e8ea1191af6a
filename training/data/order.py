"""The order in which a run draws photographs: a function of the step and the slot alone.

A step takes runs of neighbours in their shard, which one request reads. It has so many slots that
RUNS runs of a step come from all over the sets; steps with fewer slots take single photographs. The
slots of a run are as far apart as there are runs in a step, so a worker, which takes every n-th
slot, takes whole runs. In each epoch, the runs of a source come in a new random order, and hold
each photograph once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.data.sources import Source

RUNS = 256
"""Fewest runs of a step, a power of two: as many workers share a step without sharing a run."""
LONGEST = 8
"""Most photographs in a run, a power of two."""


def seeded(*key: int) -> np.random.Generator:
    """Return a random generator that depends only on ``key``."""
    return np.random.default_rng(np.random.SeedSequence(key))


@dataclass(frozen=True)
class Held:
    """Which photographs of a set are in use: all but each ``every``-th one, or only those.

    Sets with fewer than ``every`` hold none out, and use all of them for both.
    """

    every: int
    out: bool = False

    def count(self, total: int) -> int:
        """Return how many of a set's photographs are in use."""
        if total < self.every:
            return total
        return total // self.every if self.out else total - total // self.every

    def index(self, number: int, total: int) -> int:
        """Return the index of a photograph by its number among those in use."""
        if total < self.every:
            return number
        if self.out:
            return number * self.every + self.every - 1
        return number + number // (self.every - 1)


class Walk:
    """The photographs of one source in the order of their drawing, without end."""

    def __init__(self, total: int, held: Held, length: int, key: Sequence[int]) -> None:
        self.total, self.held, self.length, self.key = total, held, length, key
        self.count = held.count(total)
        self.known: dict[int, NDArray[np.uint32]] = {}

    def at(self, position: int) -> int:
        """Return the index of the photograph at a position.

        Runs begin at positions that are multiples of their length, in every epoch. So the first and
        the last run of an epoch may be short, and together as long as the others.
        """
        epoch, place = divmod(position, self.count)
        short = min(-epoch * self.count % self.length, self.count)
        run, rest = divmod(place - short, self.length)
        order_R = self._order(epoch, (self.count - short) // self.length)
        if 0 <= run < len(order_R):
            place = short + int(order_R[run]) * self.length + rest
        return self.held.index(place, self.total)

    def any(self, random: np.random.Generator) -> int:
        """Return the index of a photograph in use, drawn at random."""
        return self.held.index(int(random.integers(self.count)), self.total)

    def _order(self, epoch: int, runs: int) -> NDArray[np.uint32]:
        if epoch not in self.known:
            mixed = seeded(*self.key, epoch).permutation(np.arange(runs, dtype=np.uint32))
            kept = {other: order for other, order in self.known.items() if abs(other - epoch) == 1}
            self.known = kept | {epoch: mixed}
        return self.known[epoch]


class Order:
    """The photographs of several sources, mixed in proportion to their sizes times weights."""

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[float],
        images: int,
        key: Sequence[int],
        held: Held,
    ) -> None:
        """``images``: the slots of a step; ``key``: the seed of all random numbers."""
        counts = np.array(weights) * [len(source) for source in sources]
        self.share = counts / counts.sum()
        self.length = LONGEST
        while images % self.length or (self.length > 1 and images < self.length * RUNS):
            self.length //= 2
        self.runs = images // self.length
        self.walks = [
            Walk(len(source), held, self.length, (*key, number))
            for number, source in enumerate(sources)
        ]
        rest = self.share[::-1].cumsum()[::-1]
        self.of_rest = np.divide(self.share, rest, out=np.ones_like(rest), where=rest > 0).tolist()

    def draw(self, step: int, slot: int) -> tuple[int, int]:
        """Return the source of the photograph of a slot of a step, and its index there."""
        place, run = divmod(slot, self.runs)
        source, before = self._counted(step * self.runs + run)
        return source, self.walks[source].at(before * self.length + place)

    def other(self, random: np.random.Generator) -> tuple[int, int]:
        """Draw another photograph, from anywhere."""
        source = int(random.choice(len(self.walks), p=self.share))
        return source, self.walks[source].any(random)

    def _counted(self, count: int) -> tuple[int, int]:
        """Return the source of run number ``count``, and its runs before that one.

        A source takes its share of the runs that the sources before it leave, evenly spread.
        """
        for source, share in enumerate(self.of_rest):
            before = math.floor(count * share)
            if math.floor((count + 1) * share) > before:
                return source, before
            count -= before
        raise AssertionError("the last source takes what is left")
