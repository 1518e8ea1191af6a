"""Nearest-neighbour search in a collection on disk: a graph of most rows, and the rest compared.

Rows up to a number are in the graph, a memory-mapped file that never changes. Later rows are read
from the database and compared one by one, so that a change costs no more than its transaction. Once
there are many of them, ``build`` adds them to a copy of the graph in memory, some at a time, and
maps it again. Rows that were deleted since stay in the graph, and are missing in the database.
"""

import json
import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from usearch.index import Index

from samclip_core.answers.steps import Steps
from samclip_core.answers.zero_shot import unit
from samclip_core.io import checkpoint
from samclip_core.io.files import replacing
from services.retrieval.index import to_vector
from services.retrieval.query import EXACT

PRECISION = "bf16"
"""Of the vectors in new graphs. Hits are ranked again by the stored float32 vectors."""
UNINDEXED = EXACT
"""Rows that are compared one by one before they are added to the graph."""
ADDED = 32
"""Rows that are added to the graph at once: some 20 ms, for which a search may have to wait."""
PAGE = 1024
"""Rows that are read at once to be compared."""
CACHED = 128
"""Pages that stay in memory: at most 270 MB with vectors of 512 numbers."""

logger = logging.getLogger(__name__)
Numbers = NDArray[np.int64]
Vectors = NDArray[np.float32]
Page = tuple[Numbers, Vectors]
Ranking = tuple[Numbers, NDArray[np.float32]]


class _Rest:
    """The rows after a number, each compared with a query; the first pages are kept in memory."""

    def __init__(self, database: sqlite3.Connection, dimension: int):
        self._database, self._dimension = database, dimension
        self._pages = list[Page]()  # of all rows after ``last`` and up to ``_in_memory``
        self._in_memory = self.last = 0
        (newest,) = database.execute("SELECT max(number) FROM items").fetchone()
        self._newest = int(newest or 0)  # of the rows that were added last

    def is_long(self, count: int) -> bool:
        """Return whether there are more than UNINDEXED of all ``count`` rows, or may be."""
        return min(count, self._newest - self.last) > UNINDEXED

    def begin_after(self, last: int) -> None:
        """Leave out the rows up to this number."""
        self.last, self._in_memory = last, max(self._in_memory, last)
        self._pages = [page for page in self._pages if page[0][-1] > last]

    def change(self, removed: Sequence[int], added: Sequence[int]) -> None:
        """Leave out rows that were removed, and find those that were added after all others."""
        self._newest = added[-1] if added else self._newest
        if removed := [number for number in removed if number > self.last]:
            pages, self._pages = self._pages, []
            for number_N, vector_ND in pages:
                left = np.isin(number_N, removed, invert=True)
                whole = bool(left.all())
                self._keep((number_N, vector_ND) if whole else (number_N[left], vector_ND[left]))

    def blocks(self) -> Iterator[Page]:
        """Yield numbers, N, and vectors of length 1, N×D."""
        # Other searches may read more between two steps, and a build leave rows out.
        pages, number, last = [*self._pages], self._in_memory, self.last
        for number_N, vector_ND in pages:
            later = np.searchsorted(number_N, last, side="right")
            yield number_N[later:], vector_ND[later:]
        while number < self._newest:
            page, follows = self._read(number), number == self._in_memory
            number = int(page[0][-1]) if len(page[0]) == PAGE else self._newest
            if follows and len(self._pages) < CACHED:
                self._keep(page)
                self._in_memory = number
            if len(page[0]):
                yield page

    def _keep(self, page: Page) -> None:
        """Add rows to those in memory: to the last page, if it has room for all of them."""
        if self._pages and len(self._pages[-1][0]) + len(page[0]) <= PAGE:
            number_N, vector_ND = self._pages.pop()
            page = np.concatenate([number_N, page[0]]), np.concatenate([vector_ND, page[1]])
        if len(page[0]):
            self._pages.append(page)

    def _read(self, number: int) -> Page:
        """Return the first rows after this number."""
        rows = self._database.execute(
            "SELECT number, vector FROM items WHERE number > ? ORDER BY number LIMIT ?",
            (number, PAGE),
        ).fetchall()
        return as_arrays(rows, self._dimension)


class SearchGraph:
    """The graph of a collection at ``snapshot``, and the rows that it lacks. Not thread-safe."""

    def __init__(self, snapshot: Path, database: sqlite3.Connection, dimension: int):
        self._snapshot, self._database, self._dimension = snapshot, database, dimension
        self._graph: Index | None = None
        self._mapped = False
        self._saved = 0  # rows of the snapshot
        self._unsaved = False
        self._unwritable = False  # the last attempt to save failed
        self._given_up = False
        self._file = ""  # identity of the mapped snapshot
        self._rest = _Rest(database, dimension)
        self._open()

    @property
    def is_empty(self) -> bool:
        return self._graph is None

    def blocks(self) -> Iterator[Page]:
        """Yield numbers, N, and vectors, N×D, of the rows that the graph lacks."""
        return self._rest.blocks()

    def change(self, removed: Sequence[int], added: Sequence[int]) -> None:
        """Note that the database has committed the removal of some rows, then new ones."""
        self._rest.change(removed, added)

    def search(self, vector_D: Vectors, most: int) -> Steps[Ranking]:
        """Return numbers and cosines of the nearest rows, best first.

        Rows that are added or removed between two steps may be among them.
        """
        graph, last = self._graph, self._rest.last  # a build moves rows between two steps
        blocks = []
        for block in self._rest.blocks():
            blocks.append(compare(block, vector_D))
            yield None
        if graph is not None:
            number_N, vector_ND = yield from self._walk(graph, vector_D, most)
            old = number_N <= last
            blocks.append(compare((number_N[old], vector_ND[old]), vector_D))
        return best(blocks, most)

    def _walk(self, graph: Index, vector_D: Vectors, most: int) -> Steps[Page]:
        """Return the stored vectors of the rows that the graph finds; it may have deleted ones."""
        found, wanted, size = as_arrays([], self._dimension), most, len(graph)
        while len(found[0]) < min(most, size):
            keys = graph.search(vector_D, min(wanted, size)).keys
            rows = self._database.execute(
                "SELECT number, vector FROM items WHERE number IN (SELECT value FROM json_each(?))",
                (json.dumps(keys.tolist()),),
            ).fetchall()
            found = as_arrays(rows, self._dimension)
            if wanted >= size:
                break
            wanted *= 2
            yield None
        return found

    def build(self, count: int) -> bool:
        """Add some of all ``count`` rows, if the graph lacks many, or half of its own are gone.

        Returns whether there is more to do.
        """
        if self._given_up:
            return False
        if self._graph is None or self._mapped or self._unwritable:
            worn = not self._unwritable and self._half_is_gone(count)
            if not worn and not self._rest.is_long(count):
                return False
            if not self._unwritable:
                self._begin(count)
            self._unwritable = False
        assert self._graph is not None
        rows = self._database.execute(
            "SELECT number, vector FROM items WHERE number > ? ORDER BY number LIMIT ?",
            (self._rest.last, ADDED),
        ).fetchall()
        number_N, vector_ND = as_arrays(rows, self._dimension)
        if len(rows):
            # One thread: concurrent insertions can leave the first rows of a graph unreachable.
            self._graph.add(number_N.astype(np.uint64), vector_ND, threads=1)
            self._rest.begin_after(int(number_N[-1]))
            self._unsaved = True
        more = len(rows) == ADDED
        # In a long build, a crash loses less than what there is.
        if not more or len(self._graph) >= 2 * max(self._saved, 5 * UNINDEXED):
            self.save()
        if not more and not self._unsaved:
            self._map()
        return more

    def give_up(self) -> None:
        """Build no more until the collection is opened again, and compare what is not mapped."""
        self._given_up = True
        if not self._mapped:
            self._graph, self._unsaved = None, False
            self._rest = _Rest(self._database, self._dimension)

    def save(self) -> None:
        """Write a changed graph atomically. A failure is logged and loses no data."""
        if self._graph is None or not self._unsaved:
            return
        self._saved = len(self._graph)  # or tried
        try:
            with replacing(self._snapshot, 0o600) as partial:
                self._graph.save(str(partial))
                with partial.open("rb") as written:
                    os.fsync(written.fileno())  # the next start does not read it all to check it
                self._state(checkpoint.sha256(partial), partial)
            self._unsaved = self._unwritable = False
        except (OSError, RuntimeError, sqlite3.OperationalError) as error:  # RuntimeError: usearch
            self._unwritable = True
            logger.warning(
                "cannot write the snapshot of collection %s: %s", self._snapshot.stem, error
            )

    def _begin(self, count: int) -> None:
        """Load the graph into memory; make an empty one if there is none, or half of it is gone.

        It is empty too if the file has been replaced since it was mapped. Deleted rows stay in the
        graph: usearch finds less after a removal.
        """
        usable = self._graph is not None and not self._half_is_gone(count)
        usable = usable and self._file == _identity(self._snapshot)
        loaded = _restored(self._snapshot) if usable else None
        if loaded is None:
            loaded = Index(ndim=self._dimension, metric="cos", dtype=PRECISION)
            self._rest = _Rest(self._database, self._dimension)
        self._graph = loaded
        self._mapped, self._unsaved = False, True

    def _half_is_gone(self, count: int) -> bool:
        return 2 * count < len(self._graph or ())

    def _open(self) -> None:
        """Map the snapshot if it is intact."""
        stated = self._database.execute("SELECT sha256, file, last FROM graph").fetchone()
        if not stated or not self._snapshot.exists():
            return
        sha256, file, last = stated
        unchanged = file == _identity(self._snapshot)
        if not unchanged and checkpoint.sha256(self._snapshot) != sha256:
            return
        self._map()
        if self._graph is not None:
            self._rest.begin_after(last)
            if not unchanged:
                self._state(sha256, self._snapshot)

    def _map(self) -> None:
        if (mapped := _restored(self._snapshot, view=True)) is not None:
            self._graph, self._mapped = mapped, True
            self._saved, self._file = len(mapped), _identity(self._snapshot)

    def _state(self, sha256: str, file: Path) -> None:
        """Record the snapshot's file, and the last row in it."""
        with self._database:
            self._database.execute("DELETE FROM graph")
            stated = sha256, _identity(file), self._rest.last
            self._database.execute("INSERT INTO graph VALUES (?, ?, ?)", stated)


def as_arrays(rows: Sequence[tuple[int, bytes]], dimension: int) -> Page:
    """Return the numbers of rows, N, and their vectors with length 1, N×D."""
    vector_ND = to_vector(b"".join(vector for _, vector in rows)).reshape(-1, dimension)
    return np.array([number for number, _ in rows], np.int64), unit(vector_ND)


def compare(block: Page, vector_D: Vectors) -> Ranking:
    """Return the numbers of rows and their cosines."""
    number_N, vector_ND = block
    return number_N, vector_ND @ (vector_D / np.linalg.norm(vector_D))


def best(blocks: Sequence[Ranking], most: int) -> Ranking:
    """Return numbers and cosines of the best rows; of equally good ones, the first come first."""
    numbers = np.concatenate([np.empty(0, np.int64), *(numbers for numbers, _ in blocks)])
    scores = np.concatenate([np.empty(0, np.float32), *(scores for _, scores in blocks)])
    if len(scores) > most:  # sort those alone that may be among the best
        may_be = scores >= np.partition(scores, -most)[-most]
        numbers, scores = numbers[may_be], scores[may_be]
    order = np.argsort(-scores, kind="stable")[:most]
    return numbers[order], scores[order]


def _restored(snapshot: Path, view: bool = False) -> Index | None:
    """Load or map a graph; return None if there is no such file, or it is no graph."""
    try:
        restored: Index | None = Index.restore(str(snapshot), view=view)
    except ValueError:
        return None
    return restored


def _identity(file: Path) -> str:
    """Return what changes whenever a file is written; it is empty if there is none."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return ""
    return f"{found.st_size} {found.st_mtime_ns}"
