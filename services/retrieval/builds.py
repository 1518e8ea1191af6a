"""Work on tables in the background: indexes, and fewer files where small commits left many."""

import logging
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np

from samclip_core.answers.zero_shot import unit
from services.retrieval.collection import WIDTH
from services.retrieval.query import nearest
from services.retrieval.tables import VECTOR, Table

INDEXED = 10_000
"""Rows from which a table has indexes; comparing fewer is as fast."""
GROWN = 4
"""Factor by which a table grows before its index is made of all its rows again."""
UNINDEXED, FRAGMENTS = 5_000, 64
"""Rows that an index lacks, and small files, from which searches cost noticeably more."""
REFINED = (128, 1024, 4096)
"""How many rows that an index finds are compared by their vectors: the first with LEAST_RECALL."""
LEAST_RECALL, BEST = 0.98, 10
BITS = 3
"""Of each number in an index. With one bit, eight times as many rows must be compared."""
SAMPLE = 16
KEPT = timedelta(minutes=10)
"""How long old versions stay: a search or a backup reads the version at which it began."""

logger = logging.getLogger(__name__)


def due(table: Table) -> Callable[[], None] | None:
    """Return the work that makes searches in a table faster, if there is some."""
    state = table.stats()
    rows, fragments = state["num_rows"], state["fragment_stats"]["num_small_fragments"]
    if rows >= INDEXED:
        made = {index.name for index in table.list_indices()}
        if "id_idx" not in made:
            return partial(_add_scalars, table)
        of = max((int(found[2]) for found in map(VECTOR.fullmatch, made) if found), default=0)
        if rows >= GROWN * of:
            return partial(_add_vectors, table, rows)
        names = [name for name in made if VECTOR.fullmatch(name)]
        if names and table.index_stats(names[0]).num_unindexed_rows >= UNINDEXED:
            return partial(optimize, table)
    return partial(optimize, table) if fragments >= FRAGMENTS else None


def optimize(table: Table) -> None:
    """Join small files, add the newest rows to indexes, and remove what no reader needs."""
    table.optimize(cleanup_older_than=KEPT)


def _add_scalars(table: Table) -> None:
    from lancedb.index import BTree, LabelList

    table.create_index("pairs", config=LabelList())
    table.create_index("id", config=BTree())


def _add_vectors(table: Table, rows: int) -> None:
    """Index a table's vectors, so that at least LEAST_RECALL of the best are found.

    Otherwise an index without a refinement keeps the table from being tried again soon.
    """
    from lancedb.index import IvfRq

    before = [index.name for index in table.list_indices() if VECTOR.fullmatch(index.name)]
    queries_ND = _sample(table, rows)
    config = IvfRq(distance_type="cosine", num_bits=BITS)
    for refined in (*REFINED, 0):
        name = f"vector_{refined}_{rows}"
        table.create_index("vector", config=config, name=name)
        for other in before:
            table.drop_index(other)
        before = [name]
        if not refined or (found := recall(table, queries_ND, refined)) >= LEAST_RECALL:
            break
        logger.warning("an index of %s rows finds only %.1f %% of the best", rows, 100 * found)


def _sample(table: Table, rows: int) -> Any:
    """Return vectors between two that are stored, as queries."""
    offsets = np.linspace(0, rows - 1, 2 * SAMPLE, dtype=int).tolist()
    found = table.take_offsets(offsets).select(["vector"]).to_arrow()["vector"].to_pylist()
    vector_ND = np.array(found, np.float32)
    return unit(vector_ND[::2] + 0.5 * vector_ND[1::2])


def recall(table: Table, queries_ND: Any, refined: int) -> float:
    """Return which part of the best rows a table's index finds."""
    found = 0
    for query_D in queries_ND:
        best = nearest(table, query_D, None, [], BEST, 0)
        least = best[-1]["score"] - 1e-6  # of equal rows, any is right
        rows = nearest(table, query_D, None, [], WIDTH, refined)[:BEST]
        found += sum(row["score"] >= least for row in rows)
    return found / (BEST * len(queries_ND))
