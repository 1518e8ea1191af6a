"""Takes over the collections that an older version kept as SQLite files in the index's folder."""

import json
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from samclip_core.answers import stored_objects as objects
from samclip_core.errors import InvalidRequest
from samclip_core.io.files import locked
from services.retrieval.checks import check_item
from services.retrieval.collection import pages
from services.retrieval.index import Collections
from services.retrieval.registry import Registry
from services.retrieval.rows import MAX_DIMENSION, Item, unit_vector
from services.settings import Settings

_ITEMS = """
SELECT id, vector, metadata, packed FROM items LEFT JOIN objects USING (number) ORDER BY number
"""

ODD = ArithmeticError, RecursionError, TypeError, ValueError
"""What the values of a damaged file raise."""

logger = logging.getLogger(__name__)


def take_over(registry: Registry, settings: Settings) -> None:
    """Store the items of all files, each of which is renamed once that is done.

    An interrupted run is repeated. A damaged file stays, without a collection, and is named in the
    log. Another process waits, lest it store again what callers of this one have deleted.
    """
    place = settings.index_dir
    if not isinstance(place, Path):
        return
    with locked(place):
        for file in sorted(place.glob("*.sqlite")):
            try:
                count = _take_over(file, registry, settings)
            except (*ODD, sqlite3.Error, InvalidRequest) as error:
                logger.error("%s of an older version is not taken over: %s", file, error)
                continue
            logger.warning("took over %d items of an older version from %s", count, file)
            with suppress(FileNotFoundError):  # taken over by another, where there are no locks
                file.rename(file.with_suffix(".sqlite.taken-over"))


def _take_over(file: Path, registry: Registry, settings: Settings) -> int:
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True)) as database:
        row = database.execute("SELECT digest, dimension, dtype FROM model").fetchone()
        digest, dimension, dtype = row
        _check_types((digest, str), (dimension, int), (dtype, str))
        if not 1 <= dimension <= MAX_DIMENSION:
            raise ValueError(f"vectors of {dimension} numbers")
        every = Collections(registry, digest, dimension)
        ours, name = every.of_owner(_stored_name(file.stem))
        count = sum(1 for _ in _items(database, dimension, settings))  # raises before any is stored
        collection = ours.get_or_make(name, dtype)
        for page in pages(_items(database, dimension, settings)):
            collection.upsert(page, digest)
        return count


def _items(database: sqlite3.Connection, dimension: int, settings: Settings) -> Iterator[Item]:
    """Yield all items. Raises one of ODD, or InvalidRequest, for what Index would not store."""
    for id, vector, metadata, packed in database.execute(_ITEMS):
        pairs = json.loads(metadata)
        _check_types((id, str), (vector, bytes), (pairs, dict), (packed or b"", bytes))
        _check_types(*((value, str) for value in pairs.values()))
        objects.count(packed or b"")  # raises ValueError for other bytes
        check_item(id, pairs, settings.max_metadata_bytes)
        yield Item(id, unit_vector(vector, dimension), pairs, packed or b"")


def _check_types(*given: tuple[object, type]) -> None:
    """Raise TypeError for values of other types: SQLite stores any type in any column."""
    for value, expected in given:
        if not isinstance(value, expected):
            raise TypeError(f"{value!r:.80} is stored, expected {expected.__name__}")


def _stored_name(file: str) -> str:
    """Return the stored name of a file's collection: ``ann=1`` is Ann's, as its bits say."""
    lower, _, bits = file.partition("=")
    capitals = int(bits or "0", 16)
    return "".join(each.upper() if capitals >> at & 1 else each for at, each in enumerate(lower))
