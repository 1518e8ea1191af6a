"""The order in which a run draws photographs: a function of the step and the slot alone.

A source is divided into parts: neighbours in a shard, or every n-th file of plain folders. Its
parts are dealt to lanes once, at random, and slot s of a step draws from lane s modulo their
number: so a worker needs a few lanes only, the same ones in every step. In each of its epochs, a
lane takes its parts in a new random order, a window of them at a time, and the photographs of a
window in random order. An epoch holds each photograph once.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.data.sources import Source

HELD_OUT = 50  # one photograph in this many of each set is held out for validation
PART = 8 * 2**20
"""Bytes of a shard in a part."""
FILES = 256  # photographs in a part of plain folders
LANES = 256
"""Most lanes, a power of two: as many workers share a step without reading the same shards."""
WINDOWS = 512
"""Parts in the windows of all lanes of a source: 4 GiB, from which a step is drawn."""
SHORTEST = 2  # parts in a window


def seeded(*key: int) -> np.random.Generator:
    """Return a random generator that depends only on ``key``."""
    return np.random.default_rng(np.random.SeedSequence(key))


class Window(NamedTuple):
    """The ``parts`` that a lane draws from at its positions ``start`` to ``stop``.

    ``samples`` are the indices of the photographs there, in the order of the positions.
    """

    start: int
    parts: list[int]
    samples: NDArray[np.int64]

    @property
    def stop(self) -> int:
        return self.start + len(self.samples)


class Turn(NamedTuple):
    """Where a lane stands in a source: at ``position`` of ``window``, a window of ``source``."""

    source: int
    window: Window
    position: int

    def sample(self) -> int:
        """Return the index of the photograph that is drawn there."""
        return int(self.window.samples[self.position - self.window.start])


def part_starts(source: Source) -> NDArray[np.int64]:
    """Return the first sample of each part of a source in shards, and the number of samples."""
    index = source.index
    first_N = index.first_N1[:-1]
    shard_N, block_N = index.shard_M[first_N], index.offset_M[first_N] // PART
    new_N = (np.diff(shard_N.astype(np.int64)) != 0) | (np.diff(block_N.astype(np.int64)) != 0)
    return np.concatenate([[0], np.flatnonzero(new_N) + 1, [len(source)]])


class Walk:
    """The photographs of one source in the order of their drawing, lane by lane, without end."""

    def __init__(self, source: Source, held_out: bool, lanes: int, key: Sequence[int]) -> None:
        """``lanes``: a power of two, the lanes of a step; small sources have fewer of their own."""
        self.key = key
        self.whole = len(source) < HELD_OUT  # small sets hold none out
        self.held_out = held_out
        if source.shards:
            bounds_P1 = self._before(part_starts(source))
            self.stride, self.start_P, self.size_P = 1, bounds_P1[:-1], np.diff(bounds_P1)
        else:
            count = int(self._before(np.array(len(source))))
            self.stride = math.ceil(count / FILES)
            self.start_P = np.arange(self.stride)
            self.size_P = (count - self.start_P + self.stride - 1) // self.stride
        parts = seeded(*key, 1).permutation(np.flatnonzero(self.size_P))
        self.lanes = lanes
        while self.lanes > 1 and len(parts) < 4 * SHORTEST * self.lanes:
            self.lanes //= 2
        self.shared_by = lanes // self.lanes
        self.width = max(SHORTEST, WINDOWS // self.lanes)
        self.parts = self._dealt(parts)
        self.known: dict[int, list[Window]] = {}

    def _dealt(self, parts: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Return each lane's parts, of all sizes, so that the epochs of lanes are equally long."""
        by_size = parts[np.argsort(-self.size_P[parts], kind="stable")]
        round_P, place_P = np.divmod(np.arange(len(parts)), self.lanes)
        lane_P = np.where(round_P % 2, self.lanes - 1 - place_P, place_P)
        return [by_size[lane_P == lane] for lane in range(self.lanes)]

    def at(self, lane: int, count: int) -> tuple[Window, int]:
        """Return the window and the position of draw number ``count`` of a lane of the steps."""
        turn, own = divmod(lane, self.lanes)
        position = count * self.shared_by + turn
        return self.window(own, position), position

    def window(self, lane: int, position: int) -> Window:
        """Return the window that has a position of one of this source's own lanes."""
        known = self.known.setdefault(lane, [])
        for window in known:
            if window.start <= position < window.stop:
                return window
        known[:] = [*known[-2:], self._make(lane, position)]
        return known[-1]

    def _make(self, lane: int, position: int) -> Window:
        own = self.parts[lane]
        epoch, place = divmod(position, int(self.size_P[own].sum()))
        order = seeded(*self.key, 2, lane, epoch).permutation(own)
        stop_P = self.size_P[order].cumsum()
        first = int(np.searchsorted(stop_P, place, side="right")) // self.width * self.width
        parts = order[first : first + self.width]
        numbers = [
            start + self.stride * np.arange(size)
            for start, size in zip(self.start_P[parts], self.size_P[parts], strict=True)
        ]
        mixed = seeded(*self.key, 3, lane, epoch, first).permutation(np.concatenate(numbers))
        begin = position - place + (int(stop_P[first - 1]) if first else 0)
        return Window(begin, parts.tolist(), self._index(mixed))

    def _before(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many of the photographs in use come before an index."""
        if self.whole:
            return index
        return index // HELD_OUT if self.held_out else index - index // HELD_OUT

    def _index(self, number: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the index of a photograph by its number among those in use."""
        if self.whole:
            return number
        if self.held_out:
            return number * HELD_OUT + HELD_OUT - 1
        return number + number // (HELD_OUT - 1)


class Order:
    """The photographs of several sources, mixed in proportion to their sizes times weights."""

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[float],
        images: int,
        key: Sequence[int],
        held_out: bool = False,
    ) -> None:
        """``images``: the slots of a step; ``key``: the seed of all random numbers."""
        counts = np.array(weights) * [len(source) for source in sources]
        self.share = counts / counts.sum()
        self.lanes = 1 if held_out else math.gcd(images, LANES)
        self.draws = images // self.lanes  # of a lane in a step
        self.walks = [
            Walk(source, held_out, self.lanes, (*key, number))
            for number, source in enumerate(sources)
        ]
        rest = self.share[::-1].cumsum()[::-1]
        self.of_rest = np.divide(self.share, rest, out=np.ones_like(rest), where=rest > 0).tolist()
        # The lanes draw from a source at different times; the last source takes what is left.
        phase_LS = seeded(*key, len(sources)).random((self.lanes, len(sources)))
        phase_LS[:, -1] = 0
        self.phases = phase_LS.tolist()

    def draw(self, step: int, slot: int) -> Turn:
        """Return the photograph of a slot of a step."""
        lane = slot % self.lanes
        count = step * self.draws + slot // self.lanes
        source, before = next(
            (source, before) for source, before, drawn in self._counts(lane, count) if drawn
        )
        return Turn(source, *self.walks[source].at(lane, before))

    def other(self, step: int, slot: int, random: np.random.Generator) -> Turn:
        """Draw another photograph for a slot, out of the windows of its lane."""
        turns = [*self.turns(step, slot % self.lanes)]
        number, window, _ = turns[random.choice(len(turns), p=self.share)]
        return Turn(number, window, window.start + int(random.integers(len(window.samples))))

    def turns(self, step: int, lane: int) -> Iterator[Turn]:
        """Yield where a lane stands in each source when a step begins."""
        for source, before, _ in self._counts(lane, step * self.draws):
            yield Turn(source, *self.walks[source].at(lane, before))

    def _counts(self, lane: int, count: int) -> Iterator[tuple[int, int, bool]]:
        """Yield each source, its draws among the first ``count`` of a lane, and whether it is next.

        A source takes its share of the draws that the sources before it leave, evenly spread.
        """
        decided = False
        pairs = zip(self.of_rest, self.phases[lane], strict=True)
        for source, (share, phase) in enumerate(pairs):
            before = math.floor(count * share + phase)
            drawn = not decided and math.floor((count + 1) * share + phase) > before
            yield source, before, drawn
            decided = decided or drawn
            count -= before
