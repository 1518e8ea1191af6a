"""Tables of LanceDB in a folder or a bucket: what every commit and every opening needs."""

import hashlib
import json
import logging
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from threading import Lock
from time import time
from typing import Any

import pyarrow as pa

from samclip_core.errors import SamClipError, Unavailable
from services import private_files

KEY = {"lance-schema:unenforced-primary-key": "true"}
"""Metadata of the column that rows are replaced by. Without it, two processes that add the same id
at once would leave two rows."""
OTHERS_WITHIN = timedelta(seconds=1)
"""After this, a replica sees what others have written to a bucket; in a folder, at once."""
MAX_ID = 256
"""Characters of an item's id."""
REQUESTS = {"timeout": "10s", "connect_timeout": "3s", "client_max_retries": "2"}
"""Limits of the requests to a bucket; by default, one that does not answer is asked for minutes."""
LONGEST_HELD = timedelta(days=1)
"""After this, whoever holds a version must have ended."""
DAMAGED = ".damaged"
"""What the name of a version ends with that could not be read."""
VECTOR = re.compile("vector_([0-9]+)_([0-9]+)")
"""Name of an index of vectors: how many of the rows that it finds are compared by their vectors,
and the rows that it was made of."""

logger = logging.getLogger(__name__)
Table = Any
"""A table of LanceDB."""


class Store:
    """The tables in a folder, which is closed to other users, or under a URL."""

    def __init__(self, place: Path | str):
        """Connect. Raises OSError for a folder that cannot be used."""
        prepare(place)
        self.folder = place if isinstance(place, Path) else None
        # It takes a second and 100 MB, and its threads would not survive a fork.
        import lancedb

        self._connection = lancedb.connect(
            str(place),
            read_consistency_interval=OTHERS_WITHIN if self.folder is None else timedelta(0),
            storage_options=REQUESTS if self.folder is None else None,
        )
        self._lock = Lock()
        self._on_disk = dict[str, set[str]]()

    def open(self, name: str, version: int | None = None) -> Table:
        """Open a table at a version, or the newest that can be read. Raises ValueError without.

        A loss of power cuts off the newest versions. If the one before has the same damage,
        something else has happened: then it raises RuntimeError, and all are as they were. So it
        does for a table that was open before, which others may use.
        """
        aside, before = list[Path](), ""
        while True:
            versions = self._versions(name)
            try:
                return self._opened(name, version)
            except RuntimeError as error:
                if version is not None or name in self._on_disk:
                    raise
                if aside and not versions:
                    raise ValueError(f"no version of table {name} was ever complete") from error
                again = aside and (len(versions) == 1 or str(error) == before)
                if not versions or again or not self._is_cut_off(versions[0], error):
                    for path in aside:
                        _damaged(path).rename(path)
                    raise
                with suppress(FileNotFoundError):  # another process has just set it aside
                    _set_aside(versions[0], error)
                    aside.append(versions[0])
                before = str(error)

    def _opened(self, name: str, version: int | None) -> Table:
        table = self._connection.open_table(name, version=version)
        if self.folder is not None and name not in self._on_disk:
            table.search().select([table.schema.names[-1]]).to_arrow()  # of all its files
            self._on_disk[name] = set()
        return table

    def _versions(self, name: str) -> list[Path]:
        """Return the files of a table's versions in a folder, the newest first."""
        if self.folder is None:
            return []
        versions = self.folder / f"{name}.lance" / "_versions"
        return sorted(versions.glob("*.manifest"))  # their numbers count down

    def create(self, name: str, schema: pa.Schema) -> Table:
        """Open a table, or create it if there is none."""
        try:
            return self.open(name)
        except (ValueError, RuntimeError):
            if self._versions(name):
                raise
            table = self._connection.create_table(name, schema=schema, exist_ok=True)
        self.keep(table)
        return table

    def drop(self, name: str) -> None:
        """Delete a table, if there is one."""
        with suppress(ValueError):
            self._connection.drop_table(name)
        self._on_disk.pop(name, None)

    def has_lost(self, name: str) -> bool:
        """Return whether newer versions of a table have been set aside."""
        return self.folder is not None and any(
            (self.folder / f"{name}.lance" / "_versions").glob(f"*{DAMAGED}")
        )

    def names(self) -> list[str]:
        """Return the names of all tables."""
        found, token = list[str](), None
        while (page := self._connection.list_tables(page_token=token)).tables:
            found += page.tables
            if (token := page.page_token) is None:
                break
        return found

    @contextmanager
    def held(self, table: Table, version: int | None = None) -> Iterator[Table]:
        """Yield a table as it is now or was; no cleaning removes this version meanwhile."""
        tag = f"{int(time())}-{secrets.token_hex(4)}"
        with answers():
            table.checkout_latest()  # in a bucket, not only what was seen a second ago
            version = table.version if version is None else version
            table.tags.create(tag, version)
        try:
            with answers():
                found = self.open(table.name, version)
            yield found
        finally:
            with suppress(RuntimeError, OSError, ValueError):  # the table was deleted
                table.tags.delete(tag)

    def keep(self, table: Table) -> None:
        """Write the commits of a table to the disk, which LanceDB leaves to the system."""
        if self.folder is None:
            return
        with self._lock:
            known = self._on_disk.get(table.name)
            files = {*_files(f"{self.folder}/{table.name}.lance")}
            # LanceDB replaces only its hint at the newest version.
            new = files.difference(known or ()) | {one for one in files if one.endswith(".json")}
            folders = {parent for file in new for parent in _parents(file)}
            for path in (*new, *folders, *([str(self.folder)] if known is None else [])):
                with suppress(FileNotFoundError):  # an older version, which has been cleaned up
                    _sync(path)
            self._on_disk[table.name] = files

    def _is_cut_off(self, newest: Path, error: Exception) -> bool:
        """Return whether a loss of power may be why the newest version cannot be read."""
        if re.search(r"os error (?!2\b)", str(error)):  # too many open files, for example
            return False
        table = newest.parents[1]
        files = [newest, *table.glob("data/*"), *table.glob("_deletions/*.arrow")]
        return "Not found" in str(error) or any(map(_is_cut, files))  # else it may be read later


def prepare(place: Path | str) -> None:
    """Create the folder of an index, and close it to other users. Raises OSError."""
    try:
        if isinstance(place, Path):
            private_files.make_folder(place)
    except OSError as error:
        raise OSError(
            f"index_dir {place} cannot be used ({error}): choose a folder that belongs to this "
            "user alone (SAMCLIP_INDEX_DIR)"
        ) from error


@contextmanager
def answers() -> Iterator[None]:
    """Raise Unavailable if the disk or the bucket fails."""
    try:
        yield
    except SamClipError:
        raise
    except (RuntimeError, OSError, ValueError) as error:
        logger.warning("the index failed: %s", error)
        advice = "check the disk, or the bucket and its credentials; the service log says more"
        if re.search("No space left|Disk quota|os error 28", str(error)):
            advice = "the disk is full: free some space and try again"
        elif "conflict" in str(error):
            advice = "others have changed the same items meanwhile: try again"
        raise Unavailable(f"the index failed: {advice}") from error


def quoted(text: str) -> str:
    """Return a text as a literal of a condition."""
    return "'" + text.replace("'", "''") + "'"


def one_of(ids: Iterable[str]) -> str:
    """Return the condition that a row has one of these ids, of which none is longer than MAX_ID."""
    listed = ", ".join(quoted(id) for id in ids if len(id) <= MAX_ID)
    return f"id IN ({listed})" if listed else "false"


def pair(key: str, value: str) -> str:
    """Return what stands for a pair of metadata in a table, so that no text is part of a filter."""
    return hashlib.sha256(json.dumps([key, value]).encode()).hexdigest()[:32]


def has_pairs(filter: Mapping[str, str]) -> str | None:
    """Return the condition that a row has all these pairs; None without any."""
    listed = ", ".join(quoted(pair(*each)) for each in filter.items())
    return f"array_has_all(pairs, [{listed}])" if listed else None


def refinement(table: Table) -> int:
    """Return how many rows that the table's index finds are compared; 0: it has none."""
    names = (VECTOR.fullmatch(index.name) for index in table.list_indices())
    return max((int(found[1]) for found in names if found), default=0)


def is_held(table: Table) -> bool:
    """Return whether somebody reads an older version; forget those who must have ended."""
    held = table.tags.list()
    for tag in [*held]:
        if int(tag.partition("-")[0]) < time() - LONGEST_HELD.total_seconds():
            table.tags.delete(tag)
            del held[tag]
    return bool(held)


def _damaged(version: Path) -> Path:
    return version.with_name(f"{version.name}{DAMAGED}")


def _set_aside(newest: Path, error: Exception) -> None:
    """Rename the newest version of a table."""
    logger.error(
        "the newest version of table %s cannot be read, so that the one before is used; it is "
        "kept as %s: %s",
        newest.parents[1].stem,
        _damaged(newest).name,
        error,
    )
    newest.rename(_damaged(newest))


def _files(folder: str) -> Iterator[str]:
    for where, _, names in os.walk(folder):
        yield from (f"{where}/{name}" for name in names)


def _parents(file: str) -> tuple[str, str]:
    folder = os.path.dirname(file)
    return folder, os.path.dirname(folder)


def _is_cut(file: Path) -> bool:
    """Return whether a file lacks its end."""
    with suppress(FileNotFoundError), file.open("rb") as content:
        content.seek(max(0, file.stat().st_size - 4))
        return content.read() not in (b"LANC", b"ROW1")
    return False


def _sync(path: str) -> None:
    """Write a file or a folder to the disk, and close it to other users."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(PermissionError):  # of another owner
            os.fchmod(descriptor, 0o700 if os.path.isdir(path) else 0o600)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
