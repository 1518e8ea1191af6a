"""A search in a collection: the query, and the pages of its ranking."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.objects import Sought
from samclip_core.answers.steps import Done, Steps, advance

EXACT = 10_000
"""Up to this many vectors are compared exhaustively, which is cheap and misses nothing."""
WALK = 256
"""Hits per graph search: wide enough for the first pages to miss next to nothing, and the same for
all pages, so that they are consistent."""

Key = TypeVar("Key", str, int)
T = TypeVar("T")
Nearest = Callable[[int, bool], Steps[Iterable[tuple[Key, float]]]]


@dataclass(frozen=True)
class Query:
    """A search, and the part of the ranking to return.

    vector_D: float32. filter: pairs that an item's metadata must all have. exclude: an id to leave
    out. The hits are at positions ``offset`` to ``offset + top_k`` of the remaining ranking.
    min_score: cosine below which items are left out; 0: none is. sought: for a search of objects,
    says which object of an item is meant.
    """

    vector_D: NDArray[np.float32]
    top_k: int
    offset: int = 0
    filter: Mapping[str, str] | None = None
    exclude: str | None = None
    min_score: float = 0
    sought: Sought | None = None

    def accepts(self, score: float) -> bool:
        """Return whether an item of this cosine is a hit."""
        return not self.min_score or score >= self.min_score

    def page(
        self, count: int, excluded: Key | None, nearest: Nearest[Key]
    ) -> Steps[list[tuple[Key, float]]]:
        """Return keys and cosines of the hits, best first, in a collection of ``count`` items.

        nearest(n, exact): the nearest n, by comparing all vectors or, approximately, by a search of
        the graph. excluded: the key of ``exclude``.

        All pages are slices of one ranking, so they repeat and skip nothing. Above EXACT items the
        ranking starts with the hits of one graph search, equally wide for every page, because
        different widths find different hits. All other items follow, ranked by comparison, whose
        cost only deep pages pay.
        """
        wanted = self.offset + self.top_k
        ranking: dict[Key, float] = {}
        if not self.filter and count > EXACT:
            found = yield from nearest(WALK, False)
            ranking = {key: score for key, score in found if key != excluded}
        if len(ranking) < wanted:
            for key, score in (yield from _compared(nearest, wanted + 1)):
                if key != excluded:
                    ranking.setdefault(key, score)
        page = islice(ranking.items(), self.offset, wanted)
        hits = [(key, score) for key, score in page if self.accepts(score)]
        return sorted(hits, key=lambda hit: -hit[1])


def finished(steps: Steps[T]) -> T:
    """Return the result of a search, without a pause."""
    while not isinstance(step := advance(steps, None), Done):
        pass
    return step.result


def _compared(nearest: Nearest[Key], count: int) -> Steps[list[tuple[Key, float]]]:
    """Return the nearest ``count``, in the same order for every ``count``: ties are sorted by key.

    Engines return an arbitrary subset of tied items, so all ties with the last hit are fetched.
    """
    requested = count + 1
    while True:
        hits = yield from nearest(requested, True)
        found = sorted(hits, key=lambda hit: (-hit[1], hit[0]))
        if len(found) < requested or found[-1][1] < found[count - 1][1]:
            return found[:count]
        requested *= 2
