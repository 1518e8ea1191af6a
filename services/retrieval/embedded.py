"""The embedded engine: all collections of a directory, in files of their own."""

import logging
import resource
import sqlite3
from collections import OrderedDict
from pathlib import Path

from samclip_core.errors import Unavailable
from services import private_files
from services.retrieval import collection, folder
from services.retrieval.collection import EmbeddedCollection, on_disk
from services.retrieval.index import UNRECORDED, Collections, Description

MOST_OPEN = 1000
"""Collections whose files and graph are open at the same time, where ``ulimit -n`` allows it."""
DESCRIPTORS = 6
"""Of the process, per open collection: three are its files, the others are left to the rest."""

logger = logging.getLogger(__name__)


class EmbeddedCollections(Collections):
    """All collections of a directory, which this process alone has open until ``close``."""

    def __init__(self, directory: Path, digest: str, dimension: int):
        """Lock the directory. Raises Unavailable while another process has it open."""
        super().__init__(digest, dimension)
        try:
            self._lock = folder.take(directory, folder.REPLICA)
        except folder.FolderError as error:
            logger.warning("%s", error)
            raise Unavailable(
                "the index cannot be opened here, as the log of the service explains: try again"
            ) from error
        self._directory = directory
        self._open: OrderedDict[str, EmbeddedCollection] = OrderedDict()  # last used at the end
        self._most_open = max(1, min(MOST_OPEN, _descriptors() // DESCRIPTORS))
        private_files.close_files(directory, "*.sqlite*", "*.usearch", "*.partial", "*.lock")
        names = sorted(path.stem for path in directory.glob("*.sqlite"))
        self._known: dict[str, Description | None] = dict.fromkeys(names)

    def close(self) -> None:
        """Write all snapshots."""
        for opened in self._open.values():
            opened.close()
        self._lock.close()

    def _names(self) -> list[str]:
        return sorted(self._known)

    def _find(self, name: str) -> EmbeddedCollection | None:
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        if name not in self._known:
            return None
        try:
            with on_disk():
                return self._load(name, UNRECORDED)
        except sqlite3.DatabaseError:
            self._leave_out(name)
            return None

    def _describe(self, name: str) -> Description | None:
        """Of a closed collection without its graph, which may take seconds to load."""
        if name in self._open or name not in self._known:
            return super()._describe(name)
        if self._known[name] is None:
            path = self._directory / name
            try:
                with on_disk():
                    self._known[name] = collection.describe(
                        path, self._digest, self._dimension, UNRECORDED
                    )
            except sqlite3.DatabaseError:
                self._leave_out(name)
                return None
        return self._known[name]

    def _leave_out(self, name: str) -> None:
        logger.exception("collection %s.sqlite is damaged and left out", self._directory / name)
        del self._known[name]

    def _make(self, name: str, dtype: str) -> EmbeddedCollection:
        with on_disk():
            return self._load(name, dtype)

    def _load(self, name: str, dtype: str) -> EmbeddedCollection:
        """Open a collection; ``dtype`` is for one that is not there yet."""
        while len(self._open) >= self._most_open:
            _, longest_unused = self._open.popitem(last=False)
            longest_unused.close()
        path = self._directory / name
        self._open[name] = EmbeddedCollection(path, self._digest, self._dimension, dtype)
        self._known[name] = None  # it may change until it is closed
        return self._open[name]

    def _remove(self, name: str) -> None:
        self._open.pop(name).remove_files()
        del self._known[name]


def _descriptors() -> int:
    """How many files this process may open: as many as its hard limit, from now on."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else MOST_OPEN * DESCRIPTORS
