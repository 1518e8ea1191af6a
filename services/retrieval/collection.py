"""One collection of image vectors on disk, with nearest-neighbour search.

A collection is two files. NAME.sqlite is authoritative: it has the ids, metadata, vectors and
model, and a change is committed to it before it is acknowledged. NAME.usearch, which large
collections have, is a graph that makes searches fast (``services.retrieval.graph``). Row numbers
are never reused, so the last one in the graph shows which rows it lacks, after any kind of crash.
"""

import copy
import json
import logging
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.steps import Steps
from services.retrieval import objects
from services.retrieval.checks import changed_meanwhile, no_item
from services.retrieval.database import (
    Model,
    connect,
    on_disk,
    read_model,
    remove,
    snapshot,
    sync,
    total_objects,
)
from services.retrieval.file_names import stored_name
from services.retrieval.graph import (
    Page,
    Ranking,
    SearchGraph,
    as_arrays,
    best,
    compare,
)
from services.retrieval.index import (
    Collection,
    Item,
    to_bytes,
    to_vector,
)
from services.retrieval.query import EXACT, Query

logger = logging.getLogger(__name__)

PART = 2_000
"""Rows that are read and compared in one step of a search: some 20 ms."""

_LISTED = "SELECT id, metadata, count FROM items LEFT JOIN objects USING (number)"

_STORED = "SELECT id, vector, metadata, packed FROM items LEFT JOIN objects USING (number)"


class EmbeddedCollection(Collection):
    """An open collection. A change that raises Unavailable has no effect."""

    def __init__(self, path: Path, new: Model | None = None):
        """Open the collection at ``path`` (without suffix), or create an empty one with ``new``.

        Raises sqlite3.DatabaseError if its file is damaged, or missing without ``new``.
        """
        self.name = stored_name(path.name)
        self._path = path
        self._snapshot = path.with_name(f"{path.name}.usearch")
        self._database = connect(path, new)
        self.digest, self.dimension, self.dtype = read_model(self._database)
        (self._count,) = self._database.execute("SELECT COUNT(*) FROM items").fetchone()
        self._graph = SearchGraph(self._snapshot, self._database, self.dimension)

    def __len__(self) -> int:
        return int(self._count)

    def upsert(self, items: Sequence[Item], digest: str = "") -> int:
        """Add all items or none; see ``Collection.upsert``."""
        latest = {item.id: item for item in items}
        with on_disk(), self._database:
            replaced = self._remove(tuple(latest))
            added = self._insert([*latest.values()])
            adopted = max(self.digest, digest, key=len) if added else self.digest
            self._database.execute("UPDATE model SET digest = ?", (adopted,))
        self.digest = adopted
        self._change(replaced, added)
        return len(replaced)

    def delete(self, ids: Sequence[str]) -> int:
        with on_disk(), self._database:
            removed = self._remove(tuple(dict.fromkeys(ids)))
        self._change(removed, [])
        return len(removed)

    def count_objects(self, ids: Set[str] | None = None) -> int:
        if ids is None:
            return total_objects(self._database)
        (count,) = self._database.execute(
            "SELECT total(count) FROM objects JOIN items USING (number) "
            "WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps([*ids]),),
        ).fetchone()
        return int(count)

    def holds(self, ids: Set[str]) -> int:
        row = self._database.execute(
            "SELECT COUNT(*) FROM items WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps([*ids]),),
        ).fetchone()
        return int(row[0])

    def vector(self, id: str) -> NDArray[np.float32]:
        row = self._database.execute("SELECT vector FROM items WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise no_item(id, self.name)
        return to_vector(row[0])

    @contextmanager
    def _as_it_is(self) -> Iterator[Self]:
        with snapshot(self._path) as database:
            unchanging = copy.copy(self)
            unchanging._database = database
            try:
                yield unchanging
            except sqlite3.ProgrammingError as error:  # the graph's own database is closed
                raise changed_meanwhile(self.name) from error

    def _nearest(self, query: Query) -> Steps[list[pb.Hit]]:
        if not len(self):
            return []
        compared: list[Ranking] = []  # once: ``page`` calls ``nearest`` again to resolve ties
        (last,) = self._database.execute("SELECT max(number) FROM items").fetchone()

        def nearest(most: int, exact: bool) -> Steps[Iterable[tuple[int, float]]]:
            if exact:
                compared[:] = compared or [(yield from self._compare(query, last))]
                numbers, scores = compared[0]
            else:
                numbers, scores = yield from self._graph.search(query.vector_D, most)
                there = numbers <= last  # not those that were added meanwhile
                numbers, scores = numbers[there], scores[there]
            return zip(numbers[:most].tolist(), scores[:most].tolist(), strict=True)

        row = self._database.execute(
            "SELECT number FROM items WHERE id = ?", (query.exclude,)
        ).fetchone()
        excluded: int | None = row[0] if row else None
        page = yield from query.page(len(self), excluded, nearest)
        return [self._hit(number, score) for number, score in page]

    def items(self, after: str, limit: int) -> list[pb.ListedItem]:
        rows = self._database.execute(f"{_LISTED} WHERE id > ? ORDER BY id LIMIT ?", (after, limit))
        return [_listed(*row) for row in rows]

    def stored_of(self, ids: Sequence[str]) -> list[Item]:
        condition = "WHERE id IN (SELECT value FROM json_each(?))"
        rows = self._database.execute(f"{_STORED} {condition}", (json.dumps(ids),))
        return [_item(*row) for row in rows]

    def stored(self) -> Iterator[Item]:
        rows = self._database.execute(f"{_STORED} ORDER BY id")
        return (_item(*row) for row in rows)

    def build(self) -> bool:
        """Add some of the items that the graph lacks; return whether there is more to do."""
        try:
            return self._graph.build()
        except (sqlite3.Error, RuntimeError, MemoryError):  # RuntimeError: usearch
            logger.exception(
                "the graph of collection %s cannot be built: searches compare its items instead, "
                "until the service is restarted",
                self.name,
            )
            self._graph.give_up()
            return False

    def close(self) -> None:
        self._graph.save()
        self._database.close()

    def remove_files(self) -> None:
        """Close the collection and delete its files."""
        self._database.close()
        self._snapshot.unlink(missing_ok=True)
        remove(self._path)
        sync(self._path.parent)

    def _objects(self, filter: Mapping[str, str]) -> Iterator[objects.Page]:
        pairs, condition = _containing(filter)
        statement = "SELECT number, id, metadata, packed FROM objects JOIN items USING (number) "
        statement += f"WHERE number > ? {condition} ORDER BY number LIMIT ?"
        last = 0
        while rows := self._database.execute(statement, (last, *pairs, objects.PAGE)).fetchall():
            yield [
                (id, packed)
                for _, id, metadata, packed in rows
                if filter.items() <= json.loads(metadata).items()
            ]
            last = rows[-1][0]

    def _packed_of(self, ids: Sequence[str]) -> list[bytes | None]:
        statement = "SELECT packed FROM objects JOIN items USING (number) WHERE id = ?"
        rows = [self._database.execute(statement, (id,)).fetchone() for id in ids]
        return [row[0] if row else None for row in rows]

    def listed(self, ids: Sequence[str]) -> list[pb.ListedItem]:
        rows = (self._database.execute(f"{_LISTED} WHERE id = ?", (id,)).fetchone() for id in ids)
        return [_listed(*row) for row in rows if row]

    def _compare(self, query: Query, last: int) -> Steps[Ranking]:
        """Return numbers and cosines of the items that a query may find, best first."""
        found = []
        if self._graph.is_empty and not query.filter and len(self) <= EXACT:
            # In one step: those in memory may change after it.
            return best([compare(block, query.vector_D) for block in self._graph.blocks()])
        for block in self._having(query.filter or {}, last):
            found.append(compare(block, query.vector_D))
            yield None
        return best(found)

    def _having(self, filter: Mapping[str, str], last: int) -> Iterator[Page]:
        """Yield numbers and vectors of the items with this metadata up to a number, by parts."""
        pairs, condition = _containing(filter)
        statement = "SELECT number, metadata, vector FROM items WHERE number BETWEEN ? AND ? "
        statement += condition
        for first in range(1, last + 1, PART):
            part = (first, first + PART - 1, *pairs)
            rows = self._database.execute(statement, part).fetchall()
            matches = [(n, v) for n, m, v in rows if filter.items() <= json.loads(m).items()]
            yield as_arrays(matches, self.dimension)

    def _hit(self, number: int, score: float) -> pb.Hit:
        id, metadata = self._database.execute(
            "SELECT id, metadata FROM items WHERE number = ?", (number,)
        ).fetchone()
        return pb.Hit(id=id, score=score, metadata=json.loads(metadata))

    def _insert(self, items: Sequence[Item]) -> Sequence[int]:
        """Insert new items and their objects into the database; return their numbers."""
        # A repaired file may have lost its row of sqlite_sequence, or have an older one.
        (last,) = self._database.execute(
            "SELECT coalesce(max(last), 0) FROM ("
            "SELECT seq AS last FROM sqlite_sequence WHERE name = 'items' "
            "UNION ALL SELECT max(number) FROM items UNION ALL SELECT last FROM graph)"
        ).fetchone()
        numbers = range(last + 1, last + 1 + len(items))
        self._database.executemany(
            "INSERT INTO items VALUES (?, ?, ?, ?)",
            (
                (number, item.id, json.dumps(dict(item.metadata)), to_bytes(item.vector_D))
                for number, item in zip(numbers, items, strict=True)
            ),
        )
        self._database.executemany(
            "INSERT INTO objects VALUES (?, ?, ?)",
            (
                (number, objects.count(item.objects), item.objects)
                for number, item in zip(numbers, items, strict=True)
                if item.objects
            ),
        )
        return numbers

    def _remove(self, ids: Sequence[str]) -> list[int]:
        rows = self._database.execute(
            "DELETE FROM items WHERE id IN (SELECT value FROM json_each(?)) RETURNING number",
            (json.dumps(ids),),
        )
        return [number for (number,) in rows]

    def _change(self, removed: Sequence[int], added: Sequence[int]) -> None:
        """Apply the changes that the database has committed to the count and the graph."""
        self._count += len(added) - len(removed)
        self._graph.change(removed, len(added))


def _item(id: str, vector: bytes, metadata: str, packed: bytes | None) -> Item:
    return Item(id, to_vector(vector), json.loads(metadata), packed or b"")


def _listed(id: str, metadata: str, count: int | None) -> pb.ListedItem:
    return pb.ListedItem(id=id, metadata=json.loads(metadata), objects=count or 0)


def _containing(filter: Mapping[str, str]) -> tuple[list[str], str]:
    """Return the encoded pairs of a filter, and the condition that metadata contains them.

    They may also occur inside other strings, so the metadata of the results is checked again.
    """
    pairs = [json.dumps({key: value})[1:-1] for key, value in filter.items()]
    return pairs, " AND instr(metadata, ?)" * len(pairs)
