"""The collections under their stored names: which there are, their tables, and work on these."""

import re
import secrets
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from time import time
from typing import NamedTuple

import pyarrow as pa
from cachetools import LRUCache

from samclip_core.errors import Unavailable
from services.retrieval import builds
from services.retrieval.checks import changed_meanwhile, check_model
from services.retrieval.collection import Collection, Entry, make, objects_of, pages
from services.retrieval.tables import KEY, LONGEST_HELD, Store, Table, answers
from services.retrieval.upkeep import Swept, Upkeep, Work, done

ENTRIES = "collections"
"""The table of the entries. A collection is there once its entry is, and no longer."""
MOST_OPEN = 256
"""Collections whose tables are kept open."""
MOST_SWEPT = 16_384
"""Collections of which it is known when they were last swept, also if they are not open."""
ABANDONED_S = 2 * LONGEST_HELD.total_seconds()
"""Age of a table without an entry when the process that made it must have ended: twice what a
restore may take."""
ANNOUNCED_S = 60
"""Time after which a process that has announced that it replaces collections must have ended."""

_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False, metadata=KEY),
        pa.field("table", pa.string()),
        pa.field("digest", pa.string()),
        pa.field("dimension", pa.int32()),
        pa.field("dtype", pa.string()),
        pa.field("has_objects", pa.bool_()),
        pa.field("announced", pa.string(), nullable=False),
    ]
)
_TABLE = re.compile(r"([0-9a-f]{8}-[0-9a-f]{16})(\.objects)?")


class Opened(NamedTuple):
    """A collection whose tables are open, and the work on them."""

    found: Collection
    upkeep: Upkeep


class Staged(NamedTuple):
    """A collection that is about to replace another, and a snapshot that it was copied from."""

    made: Collection
    there: Collection | None
    since: Table


class Registry:
    """The collections in a folder or under a URL. Other processes may use them too."""

    def __init__(self, place: Path | str):
        """Open it, or make an empty one. Raises Unavailable."""
        with answers():
            self.store = Store(place)
            self._check_whole()
            self._table = self.store.create(ENTRIES, _SCHEMA)
            if "announced" not in self._table.schema.names:  # of an older version
                self._table.add_columns({"announced": "''"})
            self._entries, self._version = dict[str, Entry](), -1
            self._looked_at = -builds.FRAGMENTS  # the version of the entries; see due
            self._open: OrderedDict[str, Opened] = OrderedDict()  # in LRU order
            self._swept: Swept = LRUCache(MOST_SWEPT)
            self._remove_abandoned()

    def _check_whole(self) -> None:
        """Raise Unavailable if there are tables of collections, but not that of the entries."""
        names = self.store.names()
        if ENTRIES not in names and any(map(_TABLE.fullmatch, names)):
            raise Unavailable(
                f"the index has no table {ENTRIES!r}, without which the others mean nothing: bring "
                "it back from a copy, or restore a backup into an empty index_dir"
            )

    def names(self) -> list[str]:
        """Return the stored names of all collections, in order."""
        return sorted(self._current())

    def find(self, name: str) -> Collection | None:
        """Return the collection of a stored name, or None."""
        if (entry := self._current().get(name)) is None:
            return None
        if entry.table in self._open:
            found = self._open[entry.table].found
        else:
            with answers():
                found = Collection(self.store, entry, self._adopt)
            self._open[entry.table] = Opened(found, Upkeep(self.store, found, self._swept))
            while len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
        with answers():
            found.update(entry)
        self._open.move_to_end(entry.table)
        return found

    def make(self, name: str, digest: str, dimension: int, dtype: str) -> Collection:
        """Make a collection, or return that which another process has made meanwhile."""
        entry = Entry(name, _new_table(), digest, dimension, dtype)
        with answers():
            make(self.store, entry.table, dimension)
            if not self._add([entry]):
                self._drop_unused(entry)
        if (found := self.find(name)) is None:
            raise changed_meanwhile(name)
        return found

    @contextmanager
    def staged(self, entry: Entry) -> Iterator[Staged]:
        """Yield a collection with what there is under its name, which ``put`` replaces by it."""
        there = self.find(entry.name)
        entry = replace(entry, table=_new_table())
        with answers():
            make(self.store, entry.table, entry.dimension)
            made = Collection(self.store, entry, _adopted_in_time)
        try:
            with nullcontext() if there is None else there.snapshot() as since:
                if there is not None:
                    for page in pages(there.stored(since)):
                        made.upsert(page)
                yield Staged(made, there, since)
        except BaseException:
            with suppress(Unavailable), answers():
                self._drop_unused(entry)
            raise

    def put(self, staged: Sequence[Staged]) -> None:
        """Replace collections, all of them in one step or none.

        What others have changed since a collection was staged is changed in the new one too. It is
        announced before the step: a change that is acknowledged afterwards could not be followed
        if this process ended. Versions of a collection that is not all there yet are deleted.
        """
        for each in staged:
            _check_age(each.made.entry)
            each.made.forget_versions()
        since = [each.since for each in staged]
        with ExitStack() as stack:
            for announces in (False, True):  # nearly all before, as others are refused meanwhile
                if announces:
                    announced = stack.enter_context(self._announced(staged))
                latest = [there and stack.enter_context(there.snapshot()) for _, there, _ in staged]
                for (made, there, _), before, now in zip(staged, since, latest, strict=True):
                    if there is not None:
                        made.follow(now, before)
                since = latest
            self._check(staged, announced)
            merge = self._table.merge_insert("name")
            merge.when_matched_update_all(where=f"target.announced = '{announced}'")
            with answers():
                count = merge.execute(_rows([each.made.entry for each in staged])).num_updated_rows
                self._keep()
            if count < len(staged):
                raise Unavailable(
                    f"{count} of {len(staged)} collections were restored, because this process "
                    f"stood still for {ANNOUNCED_S} s and another one changed the others "
                    "meanwhile: restore them again"
                )
        for _, there, _ in staged:
            if there is not None:
                with answers():
                    self._drop(there.entry)

    @contextmanager
    def _announced(self, staged: Sequence[Staged]) -> Iterator[str]:
        """Announce that collections are replaced: no other change of them is acknowledged.

        The names of new ones are reserved by entries without a table.
        """
        announced = _new_table()
        tables = ", ".join(f"'{there.entry.table}'" for _, there, _ in staged if there is not None)
        new = [each.made.entry for each in staged if each.there is None]
        try:
            with answers():
                if tables:
                    free = f"`table` IN ({tables}) AND announced < '{_abandoned()}'"
                    self._table.update(free, {"announced": announced})
                if new:
                    self._add([replace(each, table="", announced=announced) for each in new])
                self._keep()
            self._check(staged, announced)
            yield announced
        except BaseException:
            with suppress(Unavailable), answers():
                self._table.delete(f"`table` = '' AND announced = '{announced}'")
                self._table.update(f"announced = '{announced}'", {"announced": ""})
                self._keep()
            raise

    def _add(self, entries: Sequence[Entry]) -> int:
        """Add those entries whose name is neither used nor reserved; return how many."""
        reserved = f"target.`table` = '' AND target.announced < '{_abandoned()}'"
        merge = self._table.merge_insert("name").when_not_matched_insert_all()
        done = merge.when_matched_update_all(where=reserved).execute(_rows(entries))
        self._keep()
        return int(done.num_inserted_rows + done.num_updated_rows)

    def _check(self, staged: Sequence[Staged], announced: str) -> None:
        """Have staged collections adopt the graphs of those that they replace.

        Raises Unavailable unless these are as they were announced, and new names are reserved,
        and InvalidRequest for vectors of other graphs.
        """
        with answers():
            self._table.checkout_latest()
            entries = {row["name"]: Entry(**row) for row in self._table.search().to_list()}
        for made, there, _ in staged:
            _check_age(made.entry)
            now = entries.get(made.name)
            table = "" if there is None else there.entry.table
            if now is None or (now.table, now.announced) != (table, announced):
                raise changed_meanwhile(made.name)
            if there is not None:
                made.update(_adopted(made.entry, now.digest, has_objects=False))

    def remove(self, name: str) -> None:
        """Delete a collection."""
        if (entry := self._current().get(name)) is None:
            raise changed_meanwhile(name)
        with answers():
            free = f"`table` = '{entry.table}' AND announced < '{_abandoned()}'"
            if not self._table.delete(free).num_deleted_rows:
                raise changed_meanwhile(name)
            self._keep()
            self._drop(entry)

    def due(self) -> Work | None:
        """Return work for the background that makes searches faster, if there is some."""
        there = {entry.table for entry in self._current().values()}
        if self._version >= self._looked_at + builds.FRAGMENTS:
            self._looked_at = self._version
            if work := builds.due(self._table):
                return partial(done, self.store, work, self._table)
        for name in self._open.keys() - there:  # another process has deleted it
            del self._open[name]
        return next(filter(None, (each.upkeep.due() for each in [*self._open.values()])), None)

    def _current(self) -> dict[str, Entry]:
        """Return the entries by stored name."""
        with answers():
            if self._version != (version := self._table.version):
                rows = self._table.search().where("`table` != ''").to_list()  # others are reserved
                self._entries = {row["name"]: Entry(**row) for row in rows}
                self._version = version
        return self._entries

    def _adopt(self, entry: Entry, digest: str, has_objects: bool) -> Entry:
        """Record the graphs of a digest, and that there are objects; return the new entry.

        Raises InvalidRequest if another process has just recorded other graphs, and Unavailable
        if it has deleted the collection or is about to replace it.
        """
        while True:
            self._table.checkout_latest()
            found = self._current().get(entry.name)
            if found is None or found.table != entry.table or found.announced >= _abandoned():
                raise changed_meanwhile(entry.name)
            new = _adopted(found, digest, has_objects)
            if new == found:
                return found
            is_as_read = f"target.digest = '{found.digest}' AND target.`table` = '{found.table}'"
            is_as_read += f" AND target.has_objects = {found.has_objects}"
            is_as_read += f" AND target.announced = '{found.announced}'"
            merge = self._table.merge_insert("name").when_matched_update_all(where=is_as_read)
            merge.execute(_rows([new]))
            self._keep()

    def _drop_unused(self, entry: Entry) -> None:
        """Drop a collection's tables, unless its entry is there although that was not answered."""
        self._table.checkout_latest()
        if entry.table not in {used.table for used in self._current().values()}:
            self._drop(entry)

    def _drop(self, entry: Entry) -> None:
        self._open.pop(entry.table, None)
        for table in (entry.table, objects_of(entry.table)):
            self.store.drop(table)

    def _keep(self) -> None:
        self.store.keep(self._table)

    def _remove_abandoned(self) -> None:
        if self.store.has_lost(ENTRIES):
            return  # what is without an entry may have had one
        reserved = f"`table` = '' AND announced < '{_abandoned()}'"
        if self._table.count_rows(reserved):
            self._table.delete(reserved)
            self._keep()
        used = {ENTRIES, *(entry.table for entry in self._current().values())}
        for name in self.store.names():
            ours = _TABLE.fullmatch(name)
            if ours and ours[1] not in used and _age(name) > ABANDONED_S:
                self.store.drop(name)


def _new_table() -> str:
    return f"{int(time()):x}-{secrets.token_hex(8)}"


def _age(table: str) -> float:
    """Return the seconds since a table was made, which its name says."""
    return time() - int(table.partition("-")[0], 16)


def _abandoned() -> str:
    """Return what is greater than the announcements of processes that must have ended, and ""."""
    return f"{int(time() - ANNOUNCED_S):x}"


def _check_age(entry: Entry) -> None:
    """Raise Unavailable if the table of a staged collection may soon be removed as abandoned."""
    if _age(entry.table) > LONGEST_HELD.total_seconds():
        raise Unavailable(
            "the restore has taken more than a day, and nothing has changed: restore some of the "
            "collections at a time"
        )


def _adopted_in_time(entry: Entry, digest: str, has_objects: bool) -> Entry:
    _check_age(entry)
    return _adopted(entry, digest, has_objects)


def _adopted(entry: Entry, digest: str, has_objects: bool) -> Entry:
    """Return an entry with graphs and objects. Raises InvalidRequest if it has other graphs."""
    if digest:
        check_model(entry.name, entry.digest, digest)
    digest = max(entry.digest, digest, key=len)
    has_objects |= entry.has_objects
    return replace(entry, digest=digest, has_objects=has_objects, announced="")


def _rows(entries: Sequence[Entry]) -> pa.Table:
    return pa.Table.from_pylist([*map(asdict, entries)], schema=_SCHEMA)
