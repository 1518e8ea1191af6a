"""A search in a collection: the query, and the ranking that its page is a part of."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from samclip_core.answers.objects import Sought
from samclip_core.answers.zero_shot import unit
from services.retrieval.tables import Table, has_pairs, refinement

EXACT = 5_000
"""Up to this many rows with a filter's pairs are all compared, which misses nothing."""
WIDER = 4
"""Factor between the widths of two searches whose hits follow each other in a ranking."""

WIDEST = 16_384
"""Rows of the widest search by an index: to find four times as many costs more than to compare all
of 300,000."""
PAGE = 256
"""Rows of a ranking that become dictionaries at once."""

Row = dict[str, Any]


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

    def page(self, ranking: Iterator[Row]) -> list[Row]:
        """Return the hits among the rows of a ranking, each with its ``score``, best first."""
        page = islice(ranking, self.offset, self.offset + self.top_k)
        hits = [row for row in page if not self.min_score or row["score"] >= self.min_score]
        return sorted(hits, key=lambda row: -row["score"])


def ranking(
    table: Table,
    query: Query,
    columns: Sequence[str],
    width: int,
    current: Callable[[Iterator[Row]], Iterator[Row]] = iter,
) -> Iterator[Row]:
    """Yield the best row of each image with its ``score``; pages are slices of this.

    An image that is replaced meanwhile has rows of two versions: ``current`` chooses among rows.

    An index finds other rows if it is asked for more. So the first ``width`` rows are those of one
    search, whatever the page, then follow those that a wider one finds besides, and so on until
    all are compared.
    """
    where, refined = has_pairs(query.filter or {}), refinement(table)
    if where and refined and table.count_rows(where) <= EXACT:
        refined = 0
    seen = {query.exclude}
    while True:
        found = nearest(table, query.vector_D, where, columns, width, refined)
        is_last = not refined and found.num_rows < width
        versions = _versions(found if is_last else _untied(found))
        for row in current(row for row in versions if row["id"] not in seen):
            if row["id"] not in seen:
                seen.add(row["id"])
                yield row
        if is_last:
            return
        width, rows = width * WIDER, table.count_rows(where)
        if not refined or width > WIDEST or WIDER * width >= rows:
            refined, width = 0, max(width, rows + 1)


def nearest(
    table: Table,
    vector_D: NDArray[np.float32],
    where: str | None,
    columns: Sequence[str],
    width: int,
    refined: int,
) -> pa.Table:
    """Return rows with their ``score``, best first; ``refined`` as of an index, 0: without it."""
    search = table.search(unit(vector_D)).distance_type("cosine").limit(width)
    search = search.refine_factor(max(2, refined // width)) if refined else search
    search = search if refined else search.bypass_vector_index()
    search = search.where(where) if where else search
    found = search.select([*columns, "_distance"]).to_arrow()
    score = pc.subtract(1.0, pc.cast(found["_distance"], pa.float64()))
    equal = [("id", "ascending")] if "id" in columns else []
    scored = found.drop_columns(["_distance"]).append_column("score", score)
    return scored.sort_by([("score", "descending"), *equal])


def _untied(found: pa.Table) -> pa.Table:
    """Return rows without those that share the last one's score, of which there may be others."""
    if not found.num_rows:
        return found
    better = found.filter(pc.greater(found["score"], found["score"][-1]))
    return better if better.num_rows else found


def _versions(found: pa.Table) -> Iterator[Row]:
    """Yield the first row of each version of an image. An image may have many thousand rows."""
    rows = found.append_column("row", pa.array(np.arange(found.num_rows)))
    first = rows.group_by(["id", "edition"], use_threads=False).aggregate([("row", "min")])
    kept = found.take(np.sort(first["row_min"].to_numpy()))
    for batch in kept.to_batches(PAGE):
        yield from batch.to_pylist()
