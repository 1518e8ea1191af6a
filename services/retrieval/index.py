"""The index of image vectors: the interface of its engines, and the rules they share."""

import copy
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from samclip_core.errors import DeadlineExceeded, InvalidRequest, NotFound
from samclip_core.io import checkpoint
from services.request.context import NAME
from services.request.limits import check_metadata

OF = "@"
"""Separates the tenant from the collection in stored names."""
EXACT = 10_000
"""Up to this many vectors are compared exhaustively, which is cheap and misses nothing."""
UNRECORDED = "float32"
"""Assumed precision of vectors in collections from before it was recorded. Most of them are
float32, and the other formats of that time differ from it far less than int8 does."""
WALK = 256
"""Hits per graph search: wide enough for the first pages to miss next to nothing
(``benchmarks/retrieval.py``), and the same for all pages, so that they are consistent."""

PAGE = 256
"""Items that are read or written at once where a whole collection is."""
MAX_ID = 256
"""Characters of an item's id."""

Key = TypeVar("Key", str, int)


@dataclass(frozen=True, eq=False)
class Item:
    """An image to store; ``vector_D`` is float32 of unit length."""

    id: str
    vector_D: NDArray[np.float32]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Hit:
    """An image that was found; ``score`` is the cosine."""

    id: str
    score: float
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Listed:
    """An image of a collection, without its vector."""

    id: str
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Query:
    """A search, and the part of the ranking to return.

    vector_D: float32. filter: pairs that an item's metadata must all have. exclude: an id to leave
    out. The hits are at positions ``offset`` to ``offset + top_k`` of the remaining ranking.
    abandoned is set when the caller has gone; engines check it between parts of a long comparison.
    """

    vector_D: NDArray[np.float32]
    top_k: int
    offset: int = 0
    filter: Mapping[str, str] | None = None
    exclude: str | None = None
    abandoned: threading.Event = field(default_factory=threading.Event)

    def check_wanted(self) -> None:
        """Raise DeadlineExceeded if the caller has gone."""
        if self.abandoned.is_set():
            raise DeadlineExceeded("the search was abandoned: try again with a longer deadline")

    def page(
        self,
        count: int,
        excluded: Key | None,
        walk: Callable[[int], Iterable[tuple[Key, float]]],
        compare: Callable[[int], Iterable[tuple[Key, float]]],
    ) -> list[tuple[Key, float]]:
        """Return keys and cosines of the hits, best first, in a collection of ``count`` items.

        walk: approximately the nearest n, by graph search. compare: exactly the nearest n, by
        comparing all vectors. excluded: the key of ``exclude``.

        All pages are slices of one ranking, so they repeat and skip nothing. Above EXACT items the
        ranking starts with the hits of one graph search, equally wide for every page, because
        different widths find different hits. All other items follow, ranked by comparison, whose
        cost only deep pages pay.
        """
        wanted = self.offset + self.top_k

        def others(found: Iterable[tuple[Key, float]]) -> list[tuple[Key, float]]:
            return [(key, score) for key, score in found if key != excluded]

        if self.filter or count <= EXACT:
            ranking = others(_nearest(compare, wanted + 1))
        else:
            ranking = others(walk(WALK))
            if len(ranking) < wanted:
                walked = dict(ranking)
                ranking += [
                    hit for hit in others(_nearest(compare, wanted + 1)) if hit[0] not in walked
                ]
        return sorted(ranking[self.offset : wanted], key=lambda hit: -hit[1])


def _nearest(
    compare: Callable[[int], Iterable[tuple[Key, float]]], count: int
) -> list[tuple[Key, float]]:
    """Return the nearest ``count``, in the same order for every ``count``: ties are sorted by key.

    Engines return an arbitrary subset of tied items, so all ties with the last hit are fetched.
    """
    requested = count + 1
    while True:
        found = sorted(compare(requested), key=lambda hit: (-hit[1], hit[0]))
        if len(found) < requested or found[-1][1] < found[count - 1][1]:
            return found[:count]
        requested *= 2


@dataclass(frozen=True)
class Description:
    """Summary of a collection."""

    name: str
    count: int
    dimension: int
    digest: str
    dtype: str


class Collection(Protocol):
    """A named set of images, with vectors of the model ``digest``. Not thread-safe.

    The image encoder computed all vectors in the precision ``dtype``.
    """

    digest: str
    dimension: int
    dtype: str

    def __len__(self) -> int: ...

    def upsert(self, items: Iterable[Item]) -> int:
        """Add items, replacing those with the same ids; return how many it replaced."""

    def delete(self, ids: Sequence[str]) -> int:
        """Delete items; return how many there were."""

    def holds(self, ids: Set[str]) -> int:
        """Return how many of these ids it has."""

    def vector(self, id: str) -> NDArray[np.float32]:
        """Return the vector of an item, D. Raises NotFound."""

    def search(self, query: Query) -> list[Hit]:
        """Return the nearest items by cosine, best first."""

    def items(self, after: str, limit: int) -> list[Listed]:
        """Return items in the UTF-8 byte order of their ids, starting after ``after``."""

    def stored(self) -> Iterator[Item]:
        """Yield all items with their vectors, in the same order.

        Raises InvalidRequest if the collection is made again with another model meanwhile.
        """


class Collections(ABC):
    """The collections of an index or of one of its tenants, by name. Not thread-safe."""

    def __init__(self, digest: str, dimension: int):
        """``digest`` and ``dimension`` are those of the model that computes the vectors."""
        self._digest = digest
        self._dimension = dimension

    def __len__(self) -> int:
        return len(self._names())

    def of_model(self, digest: str, dimension: int) -> Self:
        """Return the same collections, for vectors of another model."""
        view = copy.copy(self)
        Collections.__init__(view, digest, dimension)
        return view

    def get(self, name: str) -> Collection:
        """Return a collection to search or change.

        Raises NotFound, or InvalidRequest if its vectors come from another model.
        """
        collection = self.of_any_model(name)
        check_model(name, collection.digest, self._digest)
        return collection

    def check_addable(self, name: str) -> None:
        """Raise InvalidRequest unless items may be added under this name."""
        check_name(name)
        if self._find(name) is not None:
            self.get(name)

    def check_room(self, name: str, ids: Set[str], most_items: int, most_collections: int) -> None:
        """Raise InvalidRequest if these items, or a new collection for them, would be too many."""
        collection = self._find(name)
        if collection is None and len(self._names()) >= most_collections:
            raise InvalidRequest(
                f"there are {most_collections:,} collections already, which is the limit: delete "
                "one, or add to an existing one"
            )
        count = len(collection) if collection is not None else 0
        new = len(ids) - (collection.holds(ids) if collection is not None else 0)
        if count + new > most_items:
            raise InvalidRequest(
                f"collection {name!r} has {count:,} items, and {new:,} more would exceed the limit "
                f"of {most_items:,}: delete some, or choose another collection"
            )

    def get_or_make(self, name: str, dtype: str) -> Collection:
        """Return a collection to add vectors of this precision to. Raises InvalidRequest."""
        check_name(name)
        collection = self._find(name)
        if collection is None:
            collection = self._make(name, dtype)
        check_model(name, collection.digest, self._digest)
        check_dtype(name, collection.dtype, dtype)
        if collection.dimension != self._dimension:  # a backup that somebody has made up
            raise InvalidRequest(
                f"collection {name!r} has vectors of {collection.dimension} numbers, expected "
                f"{self._dimension}: choose another name"
            )
        return collection

    def of_any_model(self, name: str) -> Collection:
        """Return a collection to list or drop. Raises NotFound."""
        check_name(name)
        collection = self._find(name)
        if collection is None:
            raise _no_collection(name)
        return collection

    def drop(self, name: str) -> int:
        """Delete a collection of any model; return how many items it had. Raises NotFound."""
        collection = self.of_any_model(name)
        count = len(collection)
        self._remove(name)
        return count

    def describe(self, name: str = "") -> list[Description]:
        """Describe one collection, or all of them by name. Raises NotFound."""
        if name:
            check_name(name)
        found = [self._describe(each) for each in ([name] if name else self._names())]
        if name and None in found:
            raise _no_collection(name)
        return [description for description in found if description is not None]

    def of_tenant(self, tenant: str) -> "Collections":
        """Return the collections of one tenant; with an empty name, those without a tenant."""
        return _Tenant(self, tenant)

    def _describe(self, name: str) -> Description | None:
        found = self._find(name)
        if found is None:
            return None
        return Description(name, len(found), found.dimension, found.digest, found.dtype)

    @abstractmethod
    def close(self) -> None:
        """Close the index; it cannot be used afterwards."""

    @abstractmethod
    def _names(self) -> list[str]: ...

    @abstractmethod
    def _find(self, name: str) -> Collection | None: ...

    @abstractmethod
    def _make(self, name: str, dtype: str) -> Collection: ...

    @abstractmethod
    def _remove(self, name: str) -> None: ...


class _Tenant(Collections):
    """One tenant's collections. PETS is stored as TENANT@PETS, which ``check_name`` refuses."""

    def __init__(self, everybody: Collections, tenant: str):
        super().__init__(everybody._digest, everybody._dimension)
        self._everybody = everybody
        self._prefix = f"{tenant}{OF}" if tenant else ""

    def close(self) -> None:
        self._everybody.close()

    def _names(self) -> list[str]:
        names = self._everybody._names()
        ours = [name[len(self._prefix) :] for name in names if name.startswith(self._prefix)]
        return [name for name in ours if OF not in name]

    def _find(self, name: str) -> Collection | None:
        return self._everybody._find(self._prefix + name)

    def _describe(self, name: str) -> Description | None:
        found = self._everybody._describe(self._prefix + name)
        return found and replace(found, name=name)

    def _make(self, name: str, dtype: str) -> Collection:
        return self._everybody._make(self._prefix + name, dtype)

    def _remove(self, name: str) -> None:
        self._everybody._remove(self._prefix + name)


def check_name(name: str) -> None:
    """Raise InvalidRequest unless the name is valid for a collection, and so for its files."""
    if not NAME.fullmatch(name):
        raise InvalidRequest(
            f"collection {name[:80]!r}: expected a name of 1 to 64 letters, digits, dots, dashes "
            "and underscores that does not start with a dot or dash"
        )


def check_model(name: str, digest: str, ours: str) -> None:
    """Raise InvalidRequest unless a collection's model agrees with ours; both are identities."""
    if not checkpoint.agree(digest, ours):
        raise InvalidRequest(
            f"collection {name!r} was made with model {checkpoint.shown(digest)}, this service "
            f"runs {checkpoint.shown(ours)}, and their vectors cannot be compared: index the "
            "images again under another name (samclip reindex), or delete the collection first"
        )


def check_dtype(name: str, dtype: str, ours: str) -> None:
    """Raise InvalidRequest unless a collection's vectors have the precision of the new ones."""
    if dtype != ours:
        setting, here = dtype.partition(":")[0], ours.partition(":")[0]
        raise InvalidRequest(
            f"collection {name!r} has vectors computed in {dtype}, but this service computes in "
            f"{ours}, and a collection cannot mix precisions: "
            + (f"set SAMCLIP_DTYPE to {setting}, or " if setting != here else "")
            + "index the images again under another name (samclip reindex)"
        )


def check_item(id: str, metadata: Mapping[str, str], most_bytes: int) -> None:
    """Raise InvalidRequest for an id of another length, or more metadata than ``most_bytes``."""
    if not 0 < len(id) <= MAX_ID:
        raise InvalidRequest(
            f"the id has {len(id):,} characters, expected 1 to {MAX_ID}: send another"
        )
    check_metadata(metadata, most_bytes)


def _no_collection(name: str) -> NotFound:
    return NotFound(f"no collection {name!r}: index images into it first")


def no_item(id: str, name: str) -> NotFound:
    """Return the error for an id that a collection does not have."""
    return NotFound(
        f"no item {id[:80]!r} in collection {name.rpartition(OF)[2]!r}: index it first, or search "
        "by text or image"
    )
