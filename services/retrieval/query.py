"""A search in a collection: the query, and the pages of its ranking."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.objects import Sought

EXACT = 10_000
"""Up to this many vectors are compared exhaustively, which is cheap and misses nothing."""
WALK = 256
"""Hits per graph search: wide enough for the first pages to miss next to nothing, and the same for
all pages, so that they are consistent."""

Key = TypeVar("Key", str, int)


@dataclass(frozen=True)
class Query:
    """A search, and the part of the ranking to return.

    vector_D: float32. filter: pairs that an item's metadata must all have. exclude: an id to leave
    out. The hits are at positions ``offset`` to ``offset + top_k`` of the remaining ranking.
    min_score: cosine below which items are left out; 0: none is. sought: for a search of objects,
    says which object of an item is meant.

    All pages are slices of one ranking, so they repeat and skip nothing. Above EXACT items the
    ranking starts with the hits of one graph search, equally wide for every page, because
    different widths find different hits. All other items follow, ranked by comparison, whose
    cost only deep pages pay.
    """

    vector_D: NDArray[np.float32]
    top_k: int
    offset: int = 0
    filter: Mapping[str, str] | None = None
    exclude: str | None = None
    min_score: float = 0
    sought: Sought | None = None

    @property
    def depth(self) -> int:
        """How much of the ranking the page needs, if the excluded item is in it."""
        return self.offset + self.top_k + 1

    def walked(self, count: int) -> int:
        """Return how many hits come from the graph; 0: all ``count`` items are compared."""
        return WALK if count > EXACT and not self.filter else 0

    def accepts(self, score: float) -> bool:
        """Return whether an item of this cosine is a hit."""
        return not self.min_score or score >= self.min_score

    def page(self, ranking: Mapping[Key, float], excluded: Key | None) -> list[tuple[Key, float]]:
        """Return keys and cosines of the hits, best first; ``excluded`` is the key to leave out."""
        others = (pair for pair in ranking.items() if pair[0] != excluded)
        page = islice(others, self.offset, self.offset + self.top_k)
        hits = [(key, score) for key, score in page if self.accepts(score)]
        return sorted(hits, key=lambda hit: -hit[1])
