"""The database of a collection on disk: its file, its tables, and its failures."""

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from samclip_core.errors import Unavailable
from services import private_files
from services.retrieval.index import Description

_FILES = ("", "-wal", "-shm")
"""Suffixes of a database's files: the database, and the two of its write-ahead log."""

_CAPITALS = "="
"""Precedes the positions of the capitals in a file name; no collection or tenant has it."""

_SCHEMA = """
CREATE TABLE model (digest TEXT NOT NULL, dimension INTEGER NOT NULL, dtype TEXT NOT NULL);
CREATE TABLE items (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    metadata TEXT NOT NULL,
    vector BLOB NOT NULL
);
CREATE TABLE objects (number INTEGER PRIMARY KEY, count INTEGER NOT NULL, packed BLOB NOT NULL);
CREATE INDEX object_counts ON objects (count);
CREATE TABLE graph (sha256 TEXT NOT NULL, file TEXT NOT NULL, last INTEGER NOT NULL);
CREATE TRIGGER with_their_item AFTER DELETE ON items
    BEGIN DELETE FROM objects WHERE number = old.number; END
"""
"""``graph`` has the digest of the graph's file, what identifies that file, and its last item."""

_IS_OURS = """
SELECT 1 FROM sqlite_master WHERE name = 'graph'
    AND EXISTS (SELECT 1 FROM pragma_table_info('model') WHERE name = 'dtype')
"""
"""Finds a row if the whole schema is there: files of other versions lack a table or a column."""

Model = tuple[str, int, str]
"""Of a collection's vectors: the digest of the model, their dimension and their precision."""

logger = logging.getLogger(__name__)


def file_name(stored: str) -> str:
    """Return the file name, without suffix, of the collection with this stored name.

    It is in lower case. After the name of one with capitals, a number in hex has their bits, the
    lowest for the first letter: ``ann=1`` is Ann's file.
    """
    capitals = sum(1 << at for at, letter in enumerate(stored) if letter.isupper())
    return f"{stored.lower()}{_CAPITALS}{capitals:x}" if capitals else stored


def stored_name(file: str) -> str:
    """Return the stored name of the collection in a file. Raises ValueError if there is none."""
    lower, _, bits = file.partition(_CAPITALS)
    capitals = int(bits or "0", 16)
    stored = "".join(
        letter.upper() if capitals >> at & 1 else letter for at, letter in enumerate(lower)
    )
    if file_name(stored) != file:
        raise ValueError(f"{file!r} is no name of a collection's file")
    return stored


def names_in(directory: Path) -> list[str]:
    """Return the stored names of the collections in a folder, in order."""
    names = []
    for path in directory.glob("*.sqlite"):
        try:
            names.append(stored_name(path.stem))
        except ValueError as error:
            logger.warning("%s is ignored: %s", path, error)
    return sorted(names)


@contextmanager
def on_disk() -> Iterator[None]:
    """Raise Unavailable if the disk is full or fails."""
    try:
        yield
    except sqlite3.OperationalError as error:
        logger.warning("the index on disk failed: %s", error)
        full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
        advice = "free some space and try again" if full else "check the disk and the folder"
        raise Unavailable(f"the index on disk failed ({error}): {advice}") from error


def describe(path: Path) -> Description:
    """Describe the closed collection at ``path`` without loading its graph."""
    with closing(connect(path)) as database:
        digest, dimension, dtype = read_model(database)
        (count,) = database.execute("SELECT COUNT(*) FROM items").fetchone()
        name, objects = stored_name(path.name), total_objects(database)
        return Description(name, count, dimension, digest, dtype, objects)


def total_objects(database: sqlite3.Connection) -> int:
    """Return the number of objects of all items."""
    (count,) = database.execute("SELECT total(count) FROM objects").fetchone()
    return int(count)


def read_model(database: sqlite3.Connection) -> Model:
    """Return the model of a collection; the precision is empty if it is not known."""
    model: Model = database.execute("SELECT digest, dimension, dtype FROM model").fetchone()
    return model


def file_of(path: Path) -> Path:
    """Return the database's file of the collection at ``path``."""
    return path.with_name(f"{path.name}.sqlite")


def connect(path: Path, new: Model | None = None) -> sqlite3.Connection:
    """Open the database of the collection at ``path``, or make one with ``new``.

    Raises sqlite3.DatabaseError if the file is damaged, or missing without ``new``.
    """
    file = file_of(path)
    # Calls are serialised, but may come from other threads than this one, which sqlite3 refuses.
    database = sqlite3.connect(file, check_same_thread=False)
    # Of a new file: pages of 4 kB would each hold one item of 512 numbers, and be half empty.
    database.execute("PRAGMA page_size = 16384")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    if not database.execute(_IS_OURS).fetchone():
        if new is None:
            database.close()
            raise sqlite3.DatabaseError(
                "the process ended while it made the file, or another version made it"
            )
        with database:
            database.execute("BEGIN")  # otherwise each CREATE would be committed immediately
            for statement in _SCHEMA.split(";\n"):
                database.execute(statement)
            database.execute("INSERT INTO model VALUES (?, ?, ?)", new)
    for suffix in _FILES:  # by name: a glob would scan the whole folder for each collection
        private_files.close_files(path.parent, file.name + suffix)
    return database


@contextmanager
def snapshot(path: Path) -> Iterator[sqlite3.Connection]:
    """Yield a connection that reads the open collection at ``path`` as it is now.

    Later changes, even that its files are removed, do not affect it. Raises Unavailable.
    """
    with on_disk():
        address = f"{file_of(path).absolute().as_uri()}?mode=ro"
        database = sqlite3.connect(address, uri=True, check_same_thread=False, isolation_level=None)
    with closing(database):
        with on_disk():
            database.execute("BEGIN")
            database.execute("SELECT 1 FROM model").fetchone()  # the state is that of a first read
        yield database


def remove(path: Path) -> None:
    """Remove the files of the closed collection at ``path``."""
    for suffix in reversed(_FILES):  # the log stays if the collection is being read
        path.with_name(f"{path.name}.sqlite{suffix}").unlink(missing_ok=True)


def sync(directory: Path) -> None:
    """Make deletions in a directory durable; SQLite does this only for its own writes."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
