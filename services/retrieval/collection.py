"""One collection of image vectors on disk: which pictures are nearest to a vector.

It is two files. NAME.sqlite is the truth: ids, metadata, vectors, and the model they
come from; a change is there, whole, before it is acknowledged. NAME.usearch is a snapshot of the
search graph, which only saves time at the start: a row's number is never used again, so comparing
numbers tells what the snapshot lacks and what it has too much, after any kind of crash.
"""

import hashlib
import json
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from usearch.index import Index as Graph

from samclip_core.errors import Unavailable
from services import private_files
from services.retrieval.index import (
    EXACT,
    UNRECORDED,
    Description,
    Hit,
    Item,
    Listed,
    Query,
    no_item,
)

SNAPSHOT_EVERY = 5_000
"""Changes after which the graph is written again."""

_FILES = ("", "-wal", "-shm")
"""What SQLite adds to the name of a database: nothing, or one of these for its log."""

_SCHEMA = """
CREATE TABLE model (digest TEXT NOT NULL, dimension INTEGER NOT NULL, dtype TEXT NOT NULL);
CREATE TABLE snapshot (sha256 TEXT NOT NULL);
CREATE TABLE items (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    metadata TEXT NOT NULL,
    vector BLOB NOT NULL
);
"""

logger = logging.getLogger(__name__)


@contextmanager
def on_disk() -> Iterator[None]:
    """Raise Unavailable where the disk is full, or does not do its part in another way."""
    try:
        yield
    except sqlite3.OperationalError as error:
        logger.warning("the index on disk: %s", error)
        raise Unavailable(
            f"the disk that holds the index does not take this ({error}): make room, try again"
        ) from error


class EmbeddedCollection:
    """One collection, open. For one thread at a time. Changes raise Unavailable: none was made."""

    def __init__(self, path: Path, digest: str, dimension: int, dtype: str):
        """Open the collection at ``path`` (without suffix), or make an empty one."""
        self.name = path.name
        self._snapshot = path.with_name(f"{path.name}.usearch")
        self._database = _connect(path, digest, dimension, dtype)
        self.digest, self.dimension, self.dtype = _model(self._database)
        self._graph = self._load()
        self._unsaved = 0

    def __len__(self) -> int:
        return len(self._graph)

    def upsert(self, items: Iterable[Item]) -> int:
        """Add items, all or none; one whose id is there already takes its place.

        Return how many did.
        """
        rows = {
            item.id: (item.id, json.dumps(dict(item.metadata)), _blob(item.vector_D))
            for item in items
        }
        with on_disk(), self._database:
            replaced = self._remove(tuple(rows))
            added = [
                self._database.execute(
                    "INSERT INTO items (id, metadata, vector) VALUES (?, ?, ?) RETURNING number",
                    row,
                ).fetchone()[0]
                for row in rows.values()
            ]
        self._change(replaced, {n: row[2] for n, row in zip(added, rows.values(), strict=True)})
        return len(replaced)

    def delete(self, ids: Sequence[str]) -> int:
        """Take items out; ids that are not there do not count."""
        with on_disk(), self._database:
            removed = self._remove(tuple(dict.fromkeys(ids)))
        self._change(removed, {})
        return len(removed)

    def vector(self, id: str) -> NDArray[np.float32]:
        """The vector of an item, D. Raises NotFound."""
        row = self._database.execute("SELECT vector FROM items WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise no_item(id, self.name)
        return np.frombuffer(row[0], "<f4")

    def search(self, query: Query) -> list[Hit]:
        """The nearest items by cosine, best first; with a filter always one by one."""
        if not len(self):
            return []

        # Once, however often the ranking is asked for more of equally near items.
        compared = self._compare(query, query.filter) if query.filter else None

        def ranked(most: int, exact: bool) -> Iterator[tuple[int, float]]:
            query.check_wanted()
            if compared is not None:
                numbers, scores = compared
            else:
                found = self._graph.search(query.vector_D, min(most, len(self)), exact=exact)
                numbers, scores = found.keys, 1 - found.distances
            return zip(numbers[:most].tolist(), scores[:most].tolist(), strict=True)

        row = self._database.execute(
            "SELECT number FROM items WHERE id = ?", (query.exclude,)
        ).fetchone()
        excluded: int | None = row[0] if row else None
        walk, compare = partial(ranked, exact=False), partial(ranked, exact=True)
        page = query.page(len(self), excluded, walk, compare)
        return [self._hit(number, score) for number, score in page]

    def items(self, after: str, limit: int) -> list[Listed]:
        """Items by id, in the order of its UTF-8 bytes, from the first one after ``after``."""
        rows = self._database.execute(
            "SELECT id, metadata FROM items WHERE id > ? ORDER BY id LIMIT ?", (after, limit)
        )
        return [Listed(id, json.loads(metadata)) for id, metadata in rows]

    def save(self) -> None:
        """Write the snapshot, whole or not at all: nothing is lost without it."""
        if not self._unsaved:
            return
        partial = self._snapshot.with_suffix(".partial")
        try:
            self._graph.save(str(partial))
            private_files.close_files(partial.parent, partial.name)
            with self._database:
                self._database.execute("DELETE FROM snapshot")
                self._database.execute("INSERT INTO snapshot VALUES (?)", (_sha256(partial),))
            partial.replace(self._snapshot)
        except (OSError, RuntimeError, sqlite3.OperationalError) as error:  # RuntimeError: usearch
            logger.warning("no snapshot of collection %s: %s", self.name, error)
            partial.unlink(missing_ok=True)
        self._unsaved = 0

    def close(self) -> None:
        self.save()
        self._database.close()

    def remove_files(self) -> None:
        """Close for good: the collection is gone."""
        path = Path(self._database.execute("PRAGMA database_list").fetchone()[2])
        self._database.close()
        self._snapshot.unlink(missing_ok=True)
        path.unlink()
        _sync(path.parent)

    def _compare(
        self, query: Query, filter: Mapping[str, str]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Numbers and cosines of the items with this metadata, best first.

        The database looks for the pairs as they are written, which may also occur inside other
        strings, so the metadata of its results is read. Raises DeadlineExceeded where the caller
        has gone: millions of items take long, and other requests wait for this thread.
        """
        vector_D = query.vector_D
        written = [json.dumps({key: value})[1:-1] for key, value in filter.items()]
        statement = "SELECT number, metadata, vector FROM items WHERE number BETWEEN ? AND ? AND "
        statement += " AND ".join(["instr(metadata, ?)"] * len(written))
        (last,) = self._database.execute("SELECT max(number) FROM items").fetchone()
        numbers, scores = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        for first in range(1, last + 1, EXACT):
            query.check_wanted()
            part = (first, first + EXACT - 1, *written)
            some = self._database.execute(statement, part).fetchall()
            held = [(n, v) for n, m, v in some if filter.items() <= json.loads(m).items()]
            vectors_ND = np.frombuffer(b"".join(v for _, v in held), "<f4")
            vectors_ND = vectors_ND.reshape(-1, self.dimension)
            lengths_N = np.linalg.norm(vectors_ND, axis=1) * np.linalg.norm(vector_D)
            numbers.append(np.array([n for n, _ in held], np.int64))
            scores.append(vectors_ND @ vector_D / lengths_N)
        all_numbers, all_scores = np.concatenate(numbers), np.concatenate(scores)
        order = np.argsort(-all_scores, kind="stable")
        return all_numbers[order], all_scores[order]

    def _hit(self, number: int, score: float) -> Hit:
        id, metadata = self._database.execute(
            "SELECT id, metadata FROM items WHERE number = ?", (number,)
        ).fetchone()
        return Hit(id, score, json.loads(metadata))

    def _remove(self, ids: Sequence[str]) -> list[int]:
        numbers: list[int] = []
        for id in ids:
            found = self._database.execute(
                "DELETE FROM items WHERE id = ? RETURNING number", (id,)
            ).fetchone()
            numbers += found or ()
        return numbers

    def _change(self, removed: Sequence[int], added: Mapping[int, bytes]) -> None:
        """Bring the graph up to date with what the database has committed."""
        if removed:
            self._graph.remove(np.array(removed, np.uint64))
        if added:
            vectors_ND = np.stack([np.frombuffer(blob, "<f4") for blob in added.values()])
            # One thread: several at once can leave the first items of a graph with no way to them.
            self._graph.add(np.array([*added], np.uint64), vectors_ND, threads=1)
        self._unsaved += len(removed) + len(added)
        if self._unsaved >= SNAPSHOT_EVERY:
            self.save()

    def _load(self) -> Graph:
        """The snapshot, if it is what was written, and all that happened since."""
        graph = Graph(ndim=self.dimension, metric="cos", dtype="f32")
        stated = self._database.execute("SELECT sha256 FROM snapshot").fetchone()
        if stated and self._snapshot.exists() and _sha256(self._snapshot) == stated[0]:
            graph.load(str(self._snapshot))
        held = set(np.asarray(graph.keys).tolist())
        stored = {row[0] for row in self._database.execute("SELECT number FROM items")}
        if held - stored:
            graph.remove(np.array([*held - stored], np.uint64))
        for number in sorted(stored - held):
            blob = self._database.execute(
                "SELECT vector FROM items WHERE number = ?", (number,)
            ).fetchone()[0]
            graph.add(number, np.frombuffer(blob, "<f4"))
        return graph


def describe(path: Path, digest: str, dimension: int, dtype: str) -> Description:
    """The closed collection at ``path``, as ``EmbeddedCollection`` would open it, without graph."""
    with closing(_connect(path, digest, dimension, dtype)) as database:
        digest, dimension, dtype = _model(database)
        (count,) = database.execute("SELECT COUNT(*) FROM items").fetchone()
    return Description(path.name, count, dimension, digest, dtype)


def _model(database: sqlite3.Connection) -> tuple[str, int, str]:
    """Digest, dimension and dtype of the vectors; older files have no dtype."""
    digest, dimension, *dtype = database.execute("SELECT * FROM model").fetchone()
    return digest, dimension, dtype[0] if dtype else UNRECORDED


def _connect(path: Path, digest: str, dimension: int, dtype: str) -> sqlite3.Connection:
    file = path.with_name(f"{path.name}.sqlite")
    # The threads of a pool of one take turns; sqlite3 would only accept the one that connected.
    database = sqlite3.connect(file, check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'model'").fetchone():
        with database:
            database.execute("BEGIN")  # made whole or not at all
            for statement in _SCHEMA.split(";"):
                database.execute(statement)
            database.execute("INSERT INTO model VALUES (?, ?, ?)", (digest, dimension, dtype))
    for suffix in _FILES:  # by name: a pattern would search the whole folder, for each collection
        private_files.close_files(path.parent, file.name + suffix)
    return database


def _sync(directory: Path) -> None:
    """What was removed stays so whatever happens: SQLite does this for what it writes itself."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _blob(vector_D: NDArray[np.float32]) -> bytes:
    return np.ascontiguousarray(vector_D, "<f4").tobytes()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
