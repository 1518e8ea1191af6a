"""An index of image vectors: what any engine of it does, and the rules that all of them keep."""

import copy
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from samclip_core.errors import DeadlineExceeded, InvalidRequest, NotFound

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
OF = "@"
"""Between a tenant and the name of its collection, where both are kept."""
EXACT = 10_000
"""Up to so many vectors are compared one by one: that costs little and misses nothing."""
UNRECORDED = "float32"
"""The precision of vectors in collections from before it was recorded. Most of them have it, and
what the other formats of that time differ from it is far less than what int8 does."""
WALK = 256
"""Hits of each walk of a graph: wide enough for the first pages to miss next to nothing
(``benchmarks/retrieval.py``), and the same for all pages, so that they fit together."""

Key = TypeVar("Key", str, int)


@dataclass(frozen=True, eq=False)
class Item:
    """A picture to store; ``vector_D`` is float32 of length 1."""

    id: str
    vector_D: NDArray[np.float32]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Hit:
    """A picture that was found; ``score`` is the cosine."""

    id: str
    score: float
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Listed:
    """A picture of a collection, without its vector."""

    id: str
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Query:
    """What to search for, and which part of the ranking to return.

    vector_D: float32. filter: pairs that an item's metadata must all have. exclude: an id to leave
    out. The hits are those at places ``offset`` to ``offset + top_k`` of what is left. abandoned is
    set when the caller has gone: an engine looks at it between two parts of a long comparison.
    """

    vector_D: NDArray[np.float32]
    top_k: int
    offset: int = 0
    filter: Mapping[str, str] | None = None
    exclude: str | None = None
    abandoned: threading.Event = field(default_factory=threading.Event)

    def check_wanted(self) -> None:
        """Raise DeadlineExceeded where nobody waits for the hits any more."""
        if self.abandoned.is_set():
            raise DeadlineExceeded("the search was given up: search again, with more time")

    def page(
        self,
        count: int,
        excluded: Key | None,
        walk: Callable[[int], Iterable[tuple[Key, float]]],
        compare: Callable[[int], Iterable[tuple[Key, float]]],
    ) -> list[tuple[Key, float]]:
        """Keys and cosines of the hits, best first, in a collection of ``count`` items.

        walk: about the nearest n, by the graph. compare: the nearest n, by comparing all vectors.
        excluded: the key of ``exclude``.

        All pages are parts of one ranking, so they repeat and skip nothing. Above EXACT items the
        ranking begins with the hits of one walk, which is equally deep for every page: walks of
        different depths find different hits. All other items follow, ranked by comparison, which
        only deep pages pay for.
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
    """The nearest ``count``, in the same order for every ``count``: equally near ones by key.

    Engines return any of equally near items, so all of those at the end must be seen.
    """
    asked = count + 1
    while True:
        found = sorted(compare(asked), key=lambda hit: (-hit[1], hit[0]))
        if len(found) < asked or found[-1][1] < found[count - 1][1]:
            return found[:count]
        asked *= 2


@dataclass(frozen=True)
class Description:
    """A collection from outside."""

    name: str
    count: int
    dimension: int
    digest: str
    dtype: str


class Collection(Protocol):
    """Images of one name, with vectors of the model ``digest``. For one thread at a time.

    The image encoder made all vectors in the precision ``dtype``.
    """

    digest: str
    dimension: int
    dtype: str

    def __len__(self) -> int: ...

    def upsert(self, items: Iterable[Item]) -> int:
        """Add items; one whose id is there already takes its place. Return how many did."""

    def delete(self, ids: Sequence[str]) -> int:
        """Take items out; how many were there."""

    def vector(self, id: str) -> NDArray[np.float32]:
        """The vector of an item, D. Raises NotFound."""

    def search(self, query: Query) -> list[Hit]:
        """The nearest items by cosine, best first."""

    def items(self, after: str, limit: int) -> list[Listed]:
        """Items by id, in the order of its UTF-8 bytes, from the first one after ``after``."""


class Collections(ABC):
    """All collections of an index, by name, or those of a tenant. For one thread at a time."""

    def __init__(self, digest: str, dimension: int):
        """``digest`` and ``dimension`` are those of the model that the vectors are made with."""
        self._digest = digest
        self._dimension = dimension

    def __len__(self) -> int:
        return len(self._names())

    def of_model(self, digest: str, dimension: int) -> Self:
        """The same collections, for vectors of another model."""
        view = copy.copy(self)
        Collections.__init__(view, digest, dimension)
        return view

    def get(self, name: str) -> Collection:
        """A collection to search or change.

        Raises NotFound, and InvalidRequest for one that another model made.
        """
        collection = self.of_any_model(name)
        check_model(name, collection.digest, self._digest)
        return collection

    def check_addable(self, name: str) -> None:
        """Raise InvalidRequest unless items may be added under this name."""
        check_name(name)
        if self._find(name) is not None:
            self.get(name)

    def check_room(self, name: str, most_items: int, most_collections: int) -> None:
        """Raise InvalidRequest where the collection is full, or would be one too many."""
        collection = self._find(name)
        if collection is None and len(self._names()) >= most_collections:
            raise InvalidRequest(
                f"there are {most_collections:,} collections already: delete one, or add to one"
            )
        if collection is not None and len(collection) >= most_items:
            raise InvalidRequest(
                f"collection {name!r} is full, with {most_items:,} items: delete some, or choose "
                "another collection"
            )

    def get_or_make(self, name: str, dtype: str) -> Collection:
        """A collection to add vectors of this precision to. Raises InvalidRequest."""
        check_name(name)
        collection = self._find(name)
        if collection is None:
            collection = self._make(name, dtype)
        check_model(name, collection.digest, self._digest)
        check_dtype(name, collection.dtype, dtype)
        return collection

    def of_any_model(self, name: str) -> Collection:
        """A collection to list or drop. Raises NotFound."""
        check_name(name)
        collection = self._find(name)
        if collection is None:
            raise _no_collection(name)
        return collection

    def drop(self, name: str) -> int:
        """Remove a collection, of whatever model; how many items it had. Raises NotFound."""
        collection = self.of_any_model(name)
        count = len(collection)
        self._remove(name)
        return count

    def describe(self, name: str = "") -> list[Description]:
        """One collection, or all of them by name. Raises NotFound."""
        if name:
            check_name(name)
        found = [self._describe(each) for each in ([name] if name else self._names())]
        if name and None in found:
            raise _no_collection(name)
        return [description for description in found if description is not None]

    def of_tenant(self, tenant: str) -> "Collections":
        """Those of one tenant, who sees no others; without a name, those of nobody."""
        return _Tenant(self, tenant)

    def _describe(self, name: str) -> Description | None:
        found = self._find(name)
        if found is None:
            return None
        return Description(name, len(found), found.dimension, found.digest, found.dtype)

    @abstractmethod
    def close(self) -> None:
        """Nothing may be asked afterwards."""

    @abstractmethod
    def _names(self) -> list[str]: ...

    @abstractmethod
    def _find(self, name: str) -> Collection | None: ...

    @abstractmethod
    def _make(self, name: str, dtype: str) -> Collection: ...

    @abstractmethod
    def _remove(self, name: str) -> None: ...


class _Tenant(Collections):
    """Keeps PETS as TENANT@PETS, which no caller can ask for: ``check_name`` knows no such name."""

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
    """Raise InvalidRequest unless it can be a collection's name, and so a file's."""
    if not NAME.fullmatch(name):
        raise InvalidRequest(
            f"collection {name[:80]!r}: expected a name of 1 to 64 letters, digits, dots, dashes "
            "and underscores, which does not start with a dot or dash"
        )


def check_model(name: str, digest: str, ours: str) -> None:
    """Raise InvalidRequest unless a collection's vectors come from our model."""
    if digest != ours:
        raise InvalidRequest(
            f"collection {name!r} was made with model {digest[:12]}, this service "
            f"runs {ours[:12]}, and their vectors do not compare: index the images "
            "again under another name (samclip reindex), or delete the collection first"
        )


def check_dtype(name: str, dtype: str, ours: str) -> None:
    """Raise InvalidRequest unless a collection's vectors have the precision of those to add."""
    if dtype != ours:
        setting, here = dtype.partition(":")[0], ours.partition(":")[0]
        raise InvalidRequest(
            f"collection {name!r} has vectors that the image encoder computed in {dtype}, and here "
            f"it computes in {ours}: vectors of one precision belong together, so "
            + (f"set SAMCLIP_DTYPE to {setting}, or " if setting != here else "")
            + "index the images again under another name (samclip reindex)"
        )


def _no_collection(name: str) -> NotFound:
    return NotFound(f"no collection {name!r}: index images into it first")


def no_item(id: str, name: str) -> NotFound:
    """The error for an id that a collection does not have."""
    return NotFound(
        f"no item {id[:80]!r} in collection {name.rpartition(OF)[2]!r}: index it first, or search "
        "by text or image"
    )
