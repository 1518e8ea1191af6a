"""The embedded engine: all collections of a directory, each in its own files."""

import logging
import resource
import sqlite3
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from samclip_core.errors import Unavailable
from samclip_core.io import checkpoint
from services import private_files
from services.retrieval import database, folder
from services.retrieval.collection import EmbeddedCollection
from services.retrieval.database import Model, file_name, names_in, on_disk
from services.retrieval.index import Collections, Description

MOST_OPEN = 1000
"""Maximum number of open collections (files and graph), if ``ulimit -n`` allows it."""
OPEN_MAX = 10_240
"""Open files of a process where the hard limit is infinite: macOS accepts no more."""
DESCRIPTORS = 6
"""File descriptors reserved per open collection: three for its files, three for other uses."""

logger = logging.getLogger(__name__)


class EmbeddedCollections(Collections):
    """All collections of a directory, which is locked for this process until ``close``."""

    def __init__(self, directory: Path, digest: str, dimension: int):
        """Lock the directory. Raises Unavailable while another process has locked it."""
        super().__init__(digest, dimension)
        try:
            self._lock = folder.take(directory, folder.REPLICA)
        except folder.FolderError as error:
            logger.warning("%s", error)
            raise Unavailable(
                "the index cannot be opened; the service log says why: try again"
            ) from error
        self._directory = directory
        self._open: OrderedDict[str, EmbeddedCollection] = OrderedDict()  # in LRU order
        self._most_open = max(1, min(MOST_OPEN, _descriptors() // DESCRIPTORS))
        private_files.close_files(directory, "*.sqlite*", "*.usearch", "*.partial", "*.lock")
        self._known: dict[str, Description | None] = dict.fromkeys(names_in(directory))

    def close(self) -> None:
        """Write all snapshots and unlock the directory."""
        for opened in self._open.values():
            opened.close()
        self._lock.close()

    def build(self) -> bool:
        return any(collection.build() for collection in self._open.values())

    def _all_names(self) -> list[str]:
        return sorted(self._known)

    def _find(self, name: str) -> EmbeddedCollection | None:
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        if name in self._known:
            with self._undamaged(name):
                return self._load(name)
        return None

    def _describe(self, name: str) -> Description | None:
        """Describe a closed collection without its graph, which can take seconds to load."""
        if name in self._open or name not in self._known:
            return super()._describe(name)
        with self._undamaged(name):
            if self._known[name] is None:
                self._known[name] = database.describe(self._path(name))
            return self._known[name]
        return None

    @contextmanager
    def _undamaged(self, name: str) -> Iterator[None]:
        """Log that a collection's file is damaged, and forget it. Raises Unavailable."""
        try:
            with on_disk():
                yield
        except sqlite3.DatabaseError:
            logger.exception("collection %s.sqlite is damaged and ignored", self._path(name))
            del self._known[name]

    def _make(self, name: str, dtype: str) -> EmbeddedCollection:
        torch = self._digest[: checkpoint.DIGITS]  # the first items add the graphs
        with on_disk():
            return self._load(name, (torch, self._dimension, dtype))

    def _load(self, name: str, new: Model | None = None) -> EmbeddedCollection:
        """Open a collection, or create it with ``new``; evict the least recently used ones."""
        while len(self._open) >= self._most_open:
            _, oldest = self._open.popitem(last=False)
            oldest.close()
        self._open[name] = EmbeddedCollection(self._path(name), new)
        self._known[name] = None  # an open collection may change
        return self._open[name]

    def _path(self, name: str) -> Path:
        return self._directory / file_name(name)

    def _remove(self, name: str) -> None:
        self._open.pop(name).remove_files()
        del self._known[name]


def _descriptors() -> int:
    """Raise the limit of open files as far as it goes, and return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else OPEN_MAX
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most
