"""The embedded engine: all collections of a directory, in files of their own."""

import logging
import sqlite3
from pathlib import Path

from services.retrieval.collection import EmbeddedCollection, on_disk
from services.retrieval.index import Collections

logger = logging.getLogger(__name__)


class EmbeddedCollections(Collections):
    """All collections of a directory, which no other process may have open."""

    def __init__(self, directory: Path, digest: str, dimension: int):
        super().__init__(digest, dimension)
        self._directory = directory
        self._open: dict[str, EmbeddedCollection] = {}
        directory.mkdir(parents=True, exist_ok=True)
        for path in sorted(directory.glob("*.sqlite")):
            try:
                self._load(path.stem)
            except sqlite3.DatabaseError:
                logger.exception("collection %s is damaged and left out", path)

    def close(self) -> None:
        """Write all snapshots."""
        for collection in self._open.values():
            collection.close()

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
