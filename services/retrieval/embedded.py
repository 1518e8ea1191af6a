"""The embedded engine: all collections of a directory, in files of their own."""

import logging
import sqlite3
from pathlib import Path

from samclip_core.errors import Unavailable
from services import private
from services.retrieval import folder
from services.retrieval.collection import EmbeddedCollection, on_disk
from services.retrieval.index import Collections

logger = logging.getLogger(__name__)


class EmbeddedCollections(Collections):
    """All collections of a directory, which this process alone has open until ``close``."""

    def __init__(self, directory: Path, digest: str, dimension: int):
        """Open all of them. Raises Unavailable while another process has them open."""
        super().__init__(digest, dimension)
        try:
            self._lock = folder.take(directory, folder.REPLICA)
        except folder.FolderError as error:
            logger.warning("%s", error)
            raise Unavailable(
                "the index cannot be opened here, as the log of the service explains: try again"
            ) from error
        self._directory = directory
        self._open: dict[str, EmbeddedCollection] = {}
        private.close_files(directory, "*.sqlite*", "*.usearch", "*.partial", "*.lock")
        for path in sorted(directory.glob("*.sqlite")):
            try:
                self._load(path.stem)
            except sqlite3.DatabaseError:
                logger.exception("collection %s is damaged and left out", path)

    def close(self) -> None:
        """Write all snapshots."""
        for collection in self._open.values():
            collection.close()
        self._lock.close()

    def _names(self) -> list[str]:
        return sorted(self._open)

    def _find(self, name: str) -> EmbeddedCollection | None:
        return self._open.get(name)

    def _make(self, name: str) -> EmbeddedCollection:
        with on_disk():
            return self._load(name)

    def _load(self, name: str) -> EmbeddedCollection:
        path = self._directory / name
        self._open[name] = EmbeddedCollection(path, self._digest, self._dimension)
        return self._open[name]

    def _remove(self, name: str) -> None:
        self._open.pop(name).remove_files()
