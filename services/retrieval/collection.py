"""A collection: a table of its images, and beside it one of their objects' vectors.

A change is committed when it is acknowledged. An image and its objects are changed together: each
version of an image has an edition of its own, its objects' rows are written first with that
edition, and rows of an edition that no image has are not found.
"""

import json
import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from itertools import count, islice
from math import inf
from time import monotonic, time_ns
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import InvalidRequest
from services.retrieval.checks import no_item, own
from services.retrieval.object_search import ObjectHit, meant
from services.retrieval.query import Query, Row, ranking
from services.retrieval.rows import Item, item_rows, numbers, object_rows
from services.retrieval.tables import MAX_ID, Store, Table, answers, one_of, quoted

PAGE = 256
"""Items that are read or written at once where a whole collection is."""
STORED = "vector", "metadata", "packed"
WIDTH, OBJECT_WIDTH = 64, 1024
"""Rows of the first search for a page, of images and of objects, of which an image has many."""
RANDOM_BITS = 22
SETTLED_MS = 3_600_000
"""Age of objects' rows without an image, when the change that wrote them must have failed."""

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """What the index knows of a collection: its stored name, its table, and its model.

    ``has_objects``: whether it also has the table of objects. ``announced``: by whom and when, if
    another collection is about to replace it, so that no change is acknowledged.
    """

    name: str
    table: str
    digest: str
    dimension: int
    dtype: str
    has_objects: bool = False
    announced: str = ""


Adopt = Callable[[Entry, str, bool], Entry]
"""Records the graphs of a digest and that there are objects; returns the entry as it is then."""


class Collection:
    """A named set of images, with vectors of the model ``digest``. Not thread-safe.

    The image encoder computed all vectors in the precision ``dtype``. Every method raises
    Unavailable if the disk or the bucket fails; a change then has no effect.
    """

    def __init__(self, store: Store, entry: Entry, adopt: Adopt):
        self._store, self._adopt = store, adopt
        self._items = store.open(entry.table)
        self._objects: Table = None
        self.changed = -inf  # the time when this process last changed it
        self.update(entry)

    def update(self, entry: Entry) -> None:
        """Take what other processes have changed of the entry."""
        self.name, self.digest, self.dtype = entry.name, entry.digest, entry.dtype
        self.dimension, self.entry = entry.dimension, entry
        if entry.has_objects and self._objects is None:
            self._objects = self._store.open(objects_of(entry.table))

    @property
    def tables(self) -> list[Table]:
        """Its tables, which may be worked on in the background."""
        return [self._items] if self._objects is None else [self._items, self._objects]

    @property
    def version(self) -> int:
        """That of its items, which grows with each change and when it is worked on."""
        with answers():
            return int(self._items.version)

    def __len__(self) -> int:
        with answers():
            return int(self._items.count_rows())

    def __bool__(self) -> bool:
        """Return True: an empty collection is one."""
        return True

    def count_objects(self, ids: Set[str] | None = None) -> int:
        """Return the number of objects, of all items or of those with these ids."""
        if self._objects is None:
            return 0
        with answers():
            if ids is None:
                return int(self._objects.count_rows())
            return sum(row["count"] for row in self._rows(ids, "count"))

    def upsert(self, items: Sequence[Item], digest: str = "") -> int:
        """Add all items or none, replacing those with the same ids; return how many it replaced.

        A collection without graphs adopts those of ``digest`` together with the first item.
        """
        latest = {item.id: item for item in items}
        if not latest:
            return 0
        new, editions = [*latest.values()], dict(zip(latest, count(_edition()), strict=False))
        rows = item_rows(self.dimension, new, editions)
        found = object_rows(self.dimension, new, editions)
        with answers():
            if found.num_rows and self._objects is None:
                self._store.create(objects_of(self.entry.table), found.schema)
            self.update(self._adopt(self.entry, digest, found.num_rows > 0))
            before = self._editions(latest)
            if found.num_rows:
                self._objects.add(found)
                self._store.keep(self._objects)
            merge = self._items.merge_insert("id").when_matched_update_all()
            done = merge.when_not_matched_insert_all().execute(rows)
            self._store.keep(self._items)
            self._forget(before)
            self._adopt(self.entry, "", False)  # else a restore has just replaced its table
        self._has_changed()
        return int(done.num_updated_rows)

    def delete(self, ids: Sequence[str]) -> int:
        """Delete items; return how many there were. Unknown ids are ignored."""
        with answers():
            before = self._editions(ids)
            done = self._items.delete(one_of(dict.fromkeys(ids)))
            self._store.keep(self._items)
            self._forget(before)
            self._adopt(self.entry, "", False)
        self._has_changed()
        return int(done.num_deleted_rows)

    def holds(self, ids: Set[str]) -> int:
        """Return how many of these ids it has."""
        return len(self.held(ids))

    def held(self, ids: Iterable[str]) -> set[str]:
        """Return those of these ids that it has."""
        with answers():
            return {row["id"] for row in self._rows(ids)}

    def vector(self, id: str) -> NDArray[np.float32]:
        """Return the vector of an item, D. Raises NotFound."""
        for vector_D in self.vectors_of([id]).values():
            return vector_D
        raise no_item(id, self.name)

    def search(self, query: Query) -> list[pb.Hit]:
        """Return the nearest items by cosine, best first."""
        with answers():
            page = query.page(ranking(self._items, query, ["id", "edition", "metadata"], WIDTH))
        return [_hit(row, row["score"]) for row in page]

    def search_objects(self, query: Query) -> list[ObjectHit]:
        """Return the items with the nearest objects by cosine, each with the one that is meant.

        Raises InvalidRequest if there are none.
        """
        if not self.count_objects():
            raise InvalidRequest(
                f"collection {own(self.name)!r} has no objects: index its images with objects "
                "(samclip index --objects), or search for whole images"
            )
        with answers():
            columns = ["id", "edition"]
            ranked = ranking(self._objects, query, columns, OBJECT_WIDTH, self._current)
            page = query.page(ranked)
            ids = [row["id"] for row in page]
            rows = self._rows(ids, "metadata", "packed", "edition")
        found = {row["id"]: row for row in rows}
        stored = [(found.get(row["id"]), row) for row in page]
        return [
            (_hit(item, row["score"]), meant(item["packed"], query, self.dimension))
            for item, row in stored
            if item and item["edition"] == row["edition"]  # else it has just been replaced
        ]

    def listed(self, ids: Sequence[str]) -> list[pb.ListedItem]:
        """Return the items of these ids, in this order, without those that it does not have."""
        with answers():
            rows = {row["id"]: _listed(row) for row in self._rows(ids, "metadata", "count")}
        return [rows[id] for id in ids if id in rows]

    def items(self, after: str, limit: int) -> list[pb.ListedItem]:
        """Return items in the UTF-8 byte order of their ids, starting after ``after``."""
        with answers():
            return [_listed(row) for row in self._after(after, limit, "metadata", "count")]

    def vectors_of(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Return the vectors, D, of those items of these ids that it has."""
        with answers():
            rows = self._rows(ids, "vector")
        return {row["id"]: np.array(row["vector"], np.float32) for row in rows}

    def stored_of(self, ids: Sequence[str]) -> list[Item]:
        """Return the items of these ids that it has, with their vectors, in any order."""
        with answers():
            return [*_items(self._items, one_of(ids))]

    def stored(self, snapshot: Table = None) -> Iterator[Item]:
        """Yield all items with their vectors, as they are now or were in a snapshot."""
        with answers():
            yield from _items(snapshot or self._items)

    def snapshot(self, version: int | None = None) -> AbstractContextManager[Table]:
        """Hold the items as they are now or were in a version, readable for a day at most."""
        return self._store.held(self._items, version)

    def check_version(self, version: int) -> None:
        """Raise InvalidRequest unless a version of its items is still there."""
        with answers():
            there = [each["version"] for each in self._items.list_versions()]
        if version not in there:
            raise InvalidRequest(
                f"collection {own(self.name)!r} has no version {version}: choose one from "
                f"{there[0]} to {there[-1]}, or back it up as it is"
            )

    def forget_versions(self) -> None:
        """Delete all versions but the newest. Only for a collection that nobody else has read."""
        with answers():
            for table in self.tables:
                table.optimize(cleanup_older_than=timedelta(milliseconds=1), delete_unverified=True)
                self._store.keep(table)

    def follow(self, now: Table, since: Table) -> None:
        """Change what another collection has changed from one snapshot of it to a later one."""
        with answers():
            before, after = _editions_of(since), _editions_of(now)
            for some in pages(np.setdiff1d(before, after).tolist()):
                rows = since.search().where(_has_edition(some)).select(["id"]).to_list()
                self.delete([row["id"] for row in rows])
            for some in pages(np.setdiff1d(after, before).tolist()):
                self.upsert([*_items(now, _has_edition(some))])

    def sweep(self) -> None:
        """Delete the rows of objects that no image has, of changes that were interrupted."""
        if self._objects is None:
            return
        with answers():
            used = self._items.search().where("count > 0").select(["edition"]).to_arrow()
            rows = self._objects.search().select(["edition"]).to_arrow()
            unused = np.setdiff1d(rows["edition"].to_numpy(), used["edition"].to_numpy())
            settled = _edition() - (SETTLED_MS << RANDOM_BITS)
            for some in pages(unused[unused < settled].tolist()):
                self._forget(some)

    def _has_changed(self) -> None:
        self.changed = monotonic()

    def _rows(self, ids: Iterable[str], *columns: str) -> list[Row]:
        search = self._items.search().where(one_of(ids)).select(["id", *columns])
        rows: list[Row] = search.to_list()
        return rows

    def _after(self, after: str, limit: int, *columns: str) -> list[Row]:
        from lancedb.query import ColumnOrdering

        search = self._items.search().order_by([ColumnOrdering(column_name="id")])
        if after:
            search = search.where(f"id > {quoted(after[:MAX_ID])}")  # no id is between them
        rows: list[Row] = search.limit(limit).select(["id", *columns]).to_list()
        return rows

    def _editions(self, ids: Iterable[str]) -> list[int]:
        """Return the editions of those items of these ids that have objects."""
        if self._objects is None:
            return []
        return [row["edition"] for row in self._rows(ids, "edition", "count") if row["count"]]

    def _forget(self, editions: Sequence[int]) -> None:
        """Delete the objects of editions that have been replaced or deleted."""
        if editions:
            self._objects.delete(_has_edition(editions))
            self._store.keep(self._objects)

    def _current(self, found: Iterator[Row]) -> Iterator[Row]:
        """Yield the rows of objects whose image has their edition."""
        for rows in pages(found, WIDTH):
            ids = dict.fromkeys(row["id"] for row in rows)
            current = {row["id"]: row["edition"] for row in self._rows(ids, "edition")}
            yield from (row for row in rows if row["edition"] == current.get(row["id"]))


def make(store: Store, table: str, dimension: int) -> None:
    """Make the tables of an empty collection."""
    store.create(table, item_rows(dimension, [], {}).schema)


def objects_of(table: str) -> str:
    """Return the name of the table of objects beside a table of items."""
    return f"{table}.objects"


def _edition() -> int:
    """Return the number of a change, which grows with time: of its first image, others follow."""
    return (time_ns() // 1_000_000 << RANDOM_BITS) + secrets.randbits(RANDOM_BITS)


def pages(rows: Iterable[T], size: int = PAGE) -> Iterator[list[T]]:
    """Yield rows, so many at a time."""
    left = iter(rows)
    while page := [*islice(left, size)]:
        yield page


def _items(table: Table, where: str | None = None) -> Iterator[Item]:
    search = table.search().select(["id", *STORED])
    for rows in (search.where(where) if where else search).to_batches(PAGE):
        texts = (rows[name].to_pylist() for name in ("id", "metadata", "packed"))
        for vector_D, id, metadata, packed in zip(numbers(rows["vector"]), *texts, strict=True):
            yield Item(id, vector_D, json.loads(metadata), packed)


def _editions_of(table: Table) -> NDArray[np.int64]:
    editions: NDArray[np.int64] = (
        table.search().select(["edition"]).to_arrow()["edition"].to_numpy()
    )
    return editions


def _has_edition(editions: Sequence[int]) -> str:
    return f"edition IN ({', '.join(map(str, editions))})"


def _listed(row: Row) -> pb.ListedItem:
    metadata = json.loads(row["metadata"])
    return pb.ListedItem(id=row["id"], metadata=metadata, objects=row["count"])


def _hit(row: Row, score: float) -> pb.Hit:
    return pb.Hit(id=row["id"], score=score, metadata=json.loads(row["metadata"]))
