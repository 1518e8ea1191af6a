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
from services.retrieval.rows import numbers
from services.retrieval.tables import LONGEST_HELD, VECTOR, Table, is_held

INDEXED = 10_000
"""Rows from which a table has indexes; comparing fewer is as fast."""
GROWN = 4
"""Factor by which a table grows before its index is made of all its rows again."""
UNINDEXED, FRAGMENTS = 5_000, 64
"""Rows that an index lacks, and small files, from which searches cost noticeably more."""
PART_UNINDEXED = 16
"""Part of a table that its index may lack while the table changes: with each optimisation, LanceDB
writes up to a million of its rows again."""
JOINED = 1024
"""Most rows of the small files that are joined without the others."""
TRIED = (1, 128), (3, 128), (3, 1024)
"""Bits of each number in an index, and how many of the rows that it finds are compared by their
vectors: the first with LEAST_RECALL. Three bits take three times as long to build."""
LEAST_RECALL, BEST = 0.98, 10
ROUNDED = {np.dtype(np.float16): 2.5e-4, np.dtype(np.float32): 1e-6}
"""Difference of scores that are taken as equal, by the type of the vectors: LanceDB compares
objects in float16, whose numbers between 0.5 and 1 are 4.9e-4 apart."""
PRUNED = 16
"""Joins from one optimisation to the next, which also removes old versions."""
SAMPLE = 16
FILE_BITS = np.uint64(32)
"""Bits of a row's address below the number of its file."""
KEPT = timedelta(minutes=10)
"""How long old versions stay: a search or a backup reads the version at which it began."""

logger = logging.getLogger(__name__)


def due(table: Table, busy: bool = False) -> Callable[[], None] | None:
    """Return the work that makes searches in a table faster, if there is some.

    ``busy``: it has just changed and will probably change again soon.
    """
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
        most = max(UNINDEXED, rows // PART_UNINDEXED if busy else 0)
        if names and table.index_stats(names[0]).num_unindexed_rows >= most:
            return partial(optimize, table)
    return partial(join, table) if fragments >= FRAGMENTS else None


def join(table: Table) -> None:
    """Write the rows of the smallest files into one, except those that change meanwhile.

    ``optimize`` would write the whole table again, and fail whenever one of its rows is replaced.
    """
    if "packed" not in table.schema.names or table.version // FRAGMENTS % PRUNED == 0:
        optimize(table)
        return
    found = table.search().with_row_id(True).select(["edition"]).to_arrow()["_rowid"].to_numpy()
    files_N = found >> FILE_BITS
    numbers_F, rows_F = np.unique(files_N, return_counts=True)
    smallest = np.argsort(rows_F, kind="stable")
    chosen = numbers_F[smallest[np.cumsum(rows_F[smallest]) <= JOINED]]
    if len(chosen) < FRAGMENTS // 2:
        optimize(table)
        return
    rows = table.take_row_ids(found[np.isin(files_N, chosen)].tolist()).to_arrow()
    merge = table.merge_insert("id")
    merge.when_matched_update_all(where="target.edition = source.edition").execute(rows)


def optimize(table: Table) -> None:
    """Join small files, add the newest rows to indexes, and remove what no reader needs."""
    table.optimize(cleanup_older_than=LONGEST_HELD if is_held(table) else KEPT)


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
    least_N = least_scores(table, queries_ND)
    for bits, refined in (*TRIED, (1, 0)):
        name = f"vector_{refined}_{rows}"
        config = IvfRq(distance_type="cosine", num_bits=bits)
        table.create_index("vector", config=config, name=name)
        for other in {*before} - {name}:
            table.drop_index(other)
        before = [name]
        found = recall(table, queries_ND, least_N, refined) if refined else 1
        if found >= LEAST_RECALL:
            break
        logger.warning("an index of %s rows finds only %.1f %% of the best", rows, 100 * found)


def _sample(table: Table, rows: int) -> Any:
    """Return vectors between two that are stored, as queries."""
    offsets = np.linspace(0, rows - 1, 2 * SAMPLE, dtype=int).tolist()
    found = table.take_offsets(offsets).select(["vector"]).to_arrow()["vector"].to_pylist()
    vector_ND = np.array(found, np.float32)
    return unit(vector_ND[::2] + 0.5 * vector_ND[1::2])


def least_scores(table: Table, queries_ND: Any) -> Any:
    """Return the score of the last of the BEST rows for each query, by comparing all rows."""
    best_NK = np.full((len(queries_ND), BEST), -1.0)
    for batch in table.search().select(["vector"]).to_batches():
        stored_MD = numbers(batch["vector"])
        vector_MD = stored_MD.astype(np.float32)
        vector_MD /= np.maximum(np.linalg.norm(vector_MD, axis=1, keepdims=True), 1e-12)
        scores_NM = np.hstack([best_NK, queries_ND @ vector_MD.T])
        best_NK = np.partition(scores_NM, -BEST)[:, -BEST:]
    return best_NK.min(1) - ROUNDED[stored_MD.dtype]  # of equal rows, any is right


def recall(table: Table, queries_ND: Any, least_N: Any, refined: int) -> float:
    """Return which part of the rows with these scores a table's index finds."""
    found = 0
    for query_D, least in zip(queries_ND, least_N, strict=True):
        rows = nearest(table, query_D, None, [], WIDTH, refined)
        found += int((rows["score"].to_numpy()[:BEST] >= least).sum())
    return found / (BEST * len(queries_ND))
