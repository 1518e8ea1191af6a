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
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.steps import Done, Steps, advance
from services.retrieval import object_search, objects
from services.retrieval.checks import changed_meanwhile
from services.retrieval.database import (
    Model,
    connect,
    on_disk,
    read_model,
    remove,
    snapshot,
    stored_name,
    sync,
    total_objects,
)
from services.retrieval.graph import Ranking, SearchGraph, as_arrays, best, compare
from services.retrieval.index import Collection, Item, to_bytes, to_vector
from services.retrieval.query import Query

logger = logging.getLogger(__name__)
T = TypeVar("T")

PART = 2_000
"""Rows that are read and compared in one step of a search: some 20 ms."""

_OF_IDS = "WHERE id IN (SELECT value FROM json_each(?))"

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
            f"SELECT total(count) FROM objects JOIN items USING (number) {_OF_IDS}",
            (json.dumps([*ids]),),
        ).fetchone()
        return int(count)

    def holds(self, ids: Set[str]) -> int:
        statement = f"SELECT COUNT(*) FROM items {_OF_IDS}"
        (count,) = self._database.execute(statement, (json.dumps([*ids]),)).fetchone()
        return int(count)

    def _as_it_begins(self, search: Callable[[Self], Steps[T]]) -> Steps[T]:
        unchanging = copy.copy(self)
        steps = search(unchanging)
        if isinstance(first := advance(steps, None), Done):
            return first.result
        with snapshot(self._path) as unchanging._database:  # nothing has changed since the begin
            try:
                yield None
                return (yield from steps)
            except sqlite3.ProgrammingError as error:  # the graph's own database is closed
                raise changed_meanwhile(self.name) from error

    def _nearest(self, query: Query) -> Steps[list[pb.Hit]]:
        excluded = self._number(query.exclude) if query.exclude else None
        ranking = dict[int, float]()
        if walked := query.walked(len(self)):
            last = self._last()
            numbers, scores = yield from self._graph.search(query.vector_D, walked)
            there = numbers <= last  # not those that were added meanwhile
            ranking = dict(zip(numbers[there].tolist(), scores[there].tolist(), strict=True))
        if len(ranking) < query.depth:
            numbers, scores = yield from self._compare(query)
            others = zip(numbers.tolist(), scores.tolist(), strict=True)
            ranking |= ((number, score) for number, score in others if number not in ranking)
        return self._hits(query.page(ranking, excluded))

    def items(self, after: str, limit: int) -> list[pb.ListedItem]:
        rows = self._database.execute(f"{_LISTED} WHERE id > ? ORDER BY id LIMIT ?", (after, limit))
        return [_listed(*row) for row in rows]

    def vectors_of(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        rows = self._database.execute(f"SELECT id, vector FROM items {_OF_IDS}", (json.dumps(ids),))
        return {id: to_vector(stored) for id, stored in rows}

    def stored_of(self, ids: Sequence[str]) -> list[Item]:
        rows = self._database.execute(f"{_STORED} {_OF_IDS}", (json.dumps(ids),))
        return [_item(*row) for row in rows]

    def build(self) -> bool:
        """Add some of the items that the graph lacks; return whether there is more to do."""
        try:
            return self._graph.build(len(self))
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

    def _objects(self, filter: Mapping[str, str]) -> Iterator[object_search.Page]:
        pairs, condition = _containing(filter)
        statement = "SELECT number, id, metadata, packed FROM objects JOIN items USING (number) "
        statement += f"WHERE number > ? {condition} ORDER BY number LIMIT ?"
        last = 0
        while rows := self._database.execute(
            statement, (last, *pairs, object_search.PAGE)
        ).fetchall():
            yield [
                (id, packed)
                for _, id, metadata, packed in rows
                if filter.items() <= json.loads(metadata).items()
            ]
            last = rows[-1][0]

    def _packed_of(self, ids: Sequence[str]) -> dict[str, bytes]:
        statement = f"SELECT id, packed FROM objects JOIN items USING (number) {_OF_IDS}"
        return dict(self._database.execute(statement, (json.dumps(ids),)))

    def listed(self, ids: Sequence[str]) -> list[pb.ListedItem]:
        rows = self._database.execute(f"{_LISTED} {_OF_IDS}", (json.dumps([*ids]),))
        by_id = {row[0]: _listed(*row) for row in rows}
        return [by_id[id] for id in ids if id in by_id]

    def _compare(self, query: Query) -> Steps[Ranking]:
        """Return numbers and cosines of the nearest items that a query may find, best first."""
        compared = list[Ranking]()
        if self._graph.is_empty and not (query.filter or query.walked(len(self))):
            # In one step: those in memory may change after it.
            compared = [compare(block, query.vector_D) for block in self._graph.blocks()]
            return best(compared, query.depth)
        filter = query.filter or {}
        pairs, condition = _containing(filter)
        statement = "SELECT number, metadata, vector FROM items WHERE number BETWEEN ? AND ? "
        for first in range(1, self._last() + 1, PART):
            if compared:
                yield None
            part = (first, first + PART - 1, *pairs)
            rows = self._database.execute(statement + condition, part).fetchall()
            matches = [(n, v) for n, m, v in rows if filter.items() <= json.loads(m).items()]
            compared.append(compare(as_arrays(matches, self.dimension), query.vector_D))
        return best(compared, query.depth)

    def _hits(self, page: Sequence[tuple[int, float]]) -> list[pb.Hit]:
        rows = self._database.execute(
            "SELECT number, id, metadata FROM items "
            "WHERE number IN (SELECT value FROM json_each(?))",
            (json.dumps([number for number, _ in page]),),
        )
        stored = {number: (id, json.loads(metadata)) for number, id, metadata in rows}
        return [
            pb.Hit(id=stored[number][0], score=score, metadata=stored[number][1])
            for number, score in page
        ]

    def _number(self, id: str) -> int | None:
        row = self._database.execute("SELECT number FROM items WHERE id = ?", (id,)).fetchone()
        return row[0] if row else None

    def _last(self) -> int:
        """Return the number of the last item, 0 without items."""
        (last,) = self._database.execute("SELECT max(number) FROM items").fetchone()
        return last or 0

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
        statement = f"DELETE FROM items {_OF_IDS} RETURNING number"
        rows = self._database.execute(statement, (json.dumps(ids),))
        return [number for (number,) in rows]

    def _change(self, removed: Sequence[int], added: Sequence[int]) -> None:
        """Apply the changes that the database has committed to the count and the graph."""
        self._count += len(added) - len(removed)
        self._graph.change(removed, added)


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
