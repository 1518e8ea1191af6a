"""All collections of a directory, by name, and the model that they must have been made with."""

import logging
import re
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from samclip_core.errors import InvalidRequest, NotFound
from services.retrieval.collection import Collection

logger = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Description:
    """A collection from outside."""

    name: str
    count: int
    dimension: int
    digest: str


class Collections:
    """All collections of a directory. For one thread at a time."""

    def __init__(self, directory: Path, digest: str, dimension: int):
        """``digest`` and ``dimension`` are those of the model that the vectors are made with."""
        self._directory = directory
        self._digest = digest
        self._dimension = dimension
        self._open: dict[str, Collection] = {}
        directory.mkdir(parents=True, exist_ok=True)
        for path in sorted(directory.glob("*.sqlite")):
            try:
                self._open[path.stem] = self._collection(path.stem)
            except sqlite3.DatabaseError:
                logger.exception("collection %s is damaged and left out", path)

    def get(self, name: str) -> Collection:
        """A collection to search or change.

        Raises NotFound, and InvalidRequest for one that another model made.
        """
        collection = self._any(name)
        if collection.digest != self._digest:
            raise InvalidRequest(
                f"collection {name!r} was made with model {collection.digest[:12]}, this service "
                f"runs {self._digest[:12]}, and their vectors do not compare: index the images "
                "again under another name, or delete the collection first"
            )
        return collection

    def check_addable(self, name: str) -> None:
        """Raise InvalidRequest unless items may be added under this name."""
        check_name(name)
        if name in self._open:
            self.get(name)

    def get_or_make(self, name: str) -> Collection:
        """A collection to add to. Raises InvalidRequest."""
        check_name(name)
        if name not in self._open:
            self._open[name] = self._collection(name)
        return self.get(name)

    def drop(self, name: str) -> int:
        """Remove a collection, of whatever model; how many items it had. Raises NotFound."""
        collection = self._any(name)
        count = len(collection)
        del self._open[name]
        collection.remove_files()
        return count

    def describe(self, name: str = "") -> list[Description]:
        """One collection, or all of them by name. Raises NotFound."""
        chosen = [self._any(name)] if name else [self._open[n] for n in sorted(self._open)]
        return [Description(c.name, len(c), c.dimension, c.digest) for c in chosen]

    def close(self) -> None:
        """Write all snapshots."""
        for collection in self._open.values():
            collection.close()

    def _any(self, name: str) -> Collection:
        check_name(name)
        if name not in self._open:
            raise NotFound(f"no collection {name!r}: index images into it first")
        return self._open[name]

    def _collection(self, name: str) -> Collection:
        return Collection(self._directory / name, self._digest, self._dimension)


def check_name(name: str) -> None:
    """Raise InvalidRequest unless it can be a collection's name, and so a file's."""
    if not NAME.fullmatch(name):
        raise InvalidRequest(
            f"collection {name[:80]!r}: expected a name of 1 to 64 letters, digits, dots, dashes "
            "and underscores, which does not start with a dot or dash"
        )
