"""An image of a source: the place where a table or a list says that it is, and its file's state.

A state is of size and time, or an ETag, and tells a new version of a file from an old one.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from samclip.cli import places
from samclip.cli.places import WEB, protocol, system_of
from samclip.files import TIMEOUT_S, within

MOST_NAME_BYTES = 2**16
"""Of a path, an address or an id in a table or a list."""
UNKNOWN = ""
"""State of a file that is gone, that cannot be looked up, or whose server states no version."""
_VERSIONS = ("ETag", "etag")
_TIMES = ("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "created")
Part = dict[str, Any]


class SourceError(ValueError):
    """A source that does not exist, has no images, or lacks a column."""


class Columns(NamedTuple):
    """The columns of tables with the images and their ids; empty: those with the usual names."""

    image: str = ""
    id: str = ""


class Item(NamedTuple):
    """One image: its file if it has been read, or a problem instead.

    ``again``: the file could not be read, and may be readable later.
    """

    id: str
    source: str
    encoded: bytes | None = None
    problem: str = ""
    metadata: Mapping[str, str] = {}
    again: bool = False

    @property
    def has_own_file(self) -> bool:
        """Whether the image is a file that a list or a folder names."""
        return self.encoded is None and not self.problem

    def state(self) -> str:
        """Return the state of the image's own file now, UNKNOWN on the web.

        Other people's servers are asked once, for the image.
        """
        return UNKNOWN if protocol(self.source) in WEB else state(self.source)

    def read(self) -> bytes:
        """Return the file.

        Raises OSError if it could not be read, and may be readable later, and ValueError if what
        is there is refused, which another try does not change.
        """
        if self.problem:
            raise OSError(self.problem) if self.again else ValueError(self.problem)
        return places.read(self.source) if self.encoded is None else self.encoded


def failed(id: str, source: str, error: Exception) -> Item:
    """Return an item for what could not be read because of an error."""
    problem = str(error) or type(error).__name__
    return Item(id, source, problem=problem, again=isinstance(error, (places.Unread, MemoryError)))


def beside(table: str, named: str) -> str:
    """Return the place of a file that a table or list names, by default in its own folder.

    Its author may name files where the table is, and addresses of the web: any other protocol would
    lend them the rights and credentials of this process. Raises ValueError.
    """
    here, there = protocol(table), protocol(named)
    if len(named) > MOST_NAME_BYTES:
        raise ValueError(f"a path of {len(named):,} characters")
    if "://" not in named:
        if not named.startswith("/"):
            return f"{table.rpartition('/')[0]}/{named}"
        if not here:
            return named
        raise ValueError("a path of this machine, named at a URL: name files beside the table")
    if there not in (*WEB, here):
        expected = ", ".join(dict.fromkeys((here or "a path", *WEB)))
        raise ValueError(f"the protocol {there[:99]}, expected {expected}, as for the table itself")
    return named


def state(place: str) -> str:
    """Return the state of a file at a path or URL now, as 16 hex digits, or UNKNOWN."""
    try:
        found = within(TIMEOUT_S, lambda _: _at_url(place)) if "://" in place else _on_disk(place)
    except Exception:  # each file system has its own errors; a read gives the reason
        return UNKNOWN
    return hashlib.sha256(repr(found).encode()).hexdigest()[:16] if found else UNKNOWN


def _on_disk(path: str) -> tuple[Any, ...]:
    about = os.stat(path)
    return about.st_size, about.st_mtime_ns


def _at_url(url: str) -> tuple[Any, ...]:
    system, path = system_of(url)
    system.invalidate_cache()
    about = system.info(path)
    for names in (_VERSIONS, _TIMES):
        if found := next((str(about[name]) for name in names if about.get(name)), ""):
            return about.get("size"), found
    return () if about.get("size") is None else (about["size"],)


def differ(before: Sequence[str], now: Iterable[str]) -> bool:
    """Return whether a file has changed: one that cannot be asked now has not."""
    return any(
        UNKNOWN not in (old, new) and old != new for old, new in zip(before, now, strict=False)
    )
