"""The index of image vectors: the interface of its engines, and the rules they share."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import InvalidRequest, NotFound
from samclip_core.io import checkpoint
from services.request.context import NAME
from services.request.limits import check_metadata
from services.retrieval.query import Query
from services.settings import Settings

OF = "@"
"""Separates the tenant from the collection in stored names; ``check_name`` refuses it."""
OF_CONCEPTS = "+concepts"
"""Follows the tenant in the stored names of its concepts; no name has a plus sign."""
PAGE = 256
"""Items that are read or written at once where a whole collection is."""
MAX_ID = 256
"""Characters of an item's id."""


@dataclass(frozen=True, eq=False)
class Item:
    """An image to store; ``vector_D`` is float32 of unit length."""

    id: str
    vector_D: NDArray[np.float32]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Description:
    """Summary of a collection."""

    name: str
    count: int
    dimension: int
    digest: str
    dtype: str


class Collection(ABC):
    """A named set of images, with vectors of the model ``digest``. Not thread-safe.

    The image encoder computed all vectors in the precision ``dtype``.
    """

    name: str
    digest: str
    dimension: int
    dtype: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def upsert(self, items: Sequence[Item], digest: str = "") -> int:
        """Add items, replacing those with the same ids; return how many it replaced.

        A collection without graphs adopts those of ``digest`` together with the first item.
        """

    @abstractmethod
    def delete(self, ids: Sequence[str]) -> int:
        """Delete items; return how many there were. Unknown ids are ignored."""

    @abstractmethod
    def holds(self, ids: Set[str]) -> int:
        """Return how many of these ids it has."""

    @abstractmethod
    def vector(self, id: str) -> NDArray[np.float32]:
        """Return the vector of an item, D. Raises NotFound."""

    @abstractmethod
    def search(self, query: Query) -> list[pb.Hit]:
        """Return the nearest items by cosine, best first; with a filter, compare all vectors."""

    @abstractmethod
    def items(self, after: str, limit: int) -> list[pb.ListedItem]:
        """Return items in the UTF-8 byte order of their ids, starting after ``after``."""

    @abstractmethod
    def stored(self) -> Iterator[Item]:
        """Yield all items with their vectors, in the same order.

        Raises InvalidRequest if the collection is made again with another model meanwhile.
        """


class Collections(ABC):
    """The collections of an index or of one of its tenants, by name. Not thread-safe.

    PETS of a tenant is stored as TENANT@PETS. The methods of an engine take stored names.
    """

    def __init__(self, digest: str, dimension: int):
        """``digest`` and ``dimension`` are those of the model that computes the vectors."""
        self._digest = digest
        self._dimension = dimension
        self._tenant: str | None = None  # all tenants

    def __len__(self) -> int:
        """Return the number of collections; concepts are not counted."""
        return sum(OF_CONCEPTS not in name for name in self._names())

    def of_model(self, digest: str, dimension: int) -> Self:
        """Return the same collections, for vectors of another model."""
        view = copy.copy(self)
        view._digest, view._dimension = digest, dimension
        return view

    def of_tenant(self, tenant: str) -> Self:
        """Return the collections of one tenant; with an empty name, those without a tenant."""
        view = copy.copy(self)
        view._tenant = tenant
        return view

    def of_owner(self, stored: str) -> tuple[Self, str]:
        """Return the collections of the tenant in a stored name, and the name among them."""
        tenant, _, name = stored.rpartition(OF)
        return self.of_tenant(tenant), name

    def get(self, name: str) -> Collection:
        """Return a collection to search or change.

        Raises NotFound, or InvalidRequest if its vectors come from another model.
        """
        collection = self.of_any_model(name)
        check_model(name, collection.digest, self._digest)
        return collection

    def of_any_model(self, name: str) -> Collection:
        """Return a collection to list or drop. Raises NotFound."""
        collection = self._found(name)
        if collection is None:
            raise _no_collection(name)
        return collection

    def check_addable(self, name: str, ids: Set[str], settings: Settings) -> None:
        """Raise InvalidRequest unless vectors of this model may be added under these names.

        The settings limit the number of collections, and that of the items of each.
        """
        collection = self._found(name)
        if collection is not None:
            check_model(name, collection.digest, self._digest)
        elif len(self) >= settings.max_collections:
            raise InvalidRequest(
                f"there are {settings.max_collections:,} collections already, which is the limit: "
                "delete one, or add to an existing one"
            )
        count, held = (0, 0) if collection is None else (len(collection), collection.holds(ids))
        new = len(ids) - held
        if count + new > settings.max_collection_items:
            raise InvalidRequest(
                f"collection {name!r} has {count:,} items, and {new:,} more would exceed the limit "
                f"of {settings.max_collection_items:,}: delete some, or choose another collection"
            )

    def add(self, name: str, dtype: str, items: Sequence[Item], settings: Settings) -> int:
        """Add items to a collection, made for them if there is none; return how many it replaced.

        A collection of torch's vectors takes those of any graphs, and then refuses those of others.
        Raises InvalidRequest as ``check_addable`` and ``get_or_make`` do.
        """
        self.check_addable(name, {item.id for item in items}, settings)
        return self.get_or_make(name, dtype).upsert(items, self._digest)

    def get_or_make(self, name: str, dtype: str) -> Collection:
        """Return a collection to add vectors of this precision to. Raises InvalidRequest."""
        collection = self._found(name)
        if collection is None:
            collection = self._make(self._stored(name), dtype)
        check_model(name, collection.digest, self._digest)
        check_dtype(name, collection.dtype, dtype)
        if collection.dimension != self._dimension:  # a backup that somebody has made up
            raise InvalidRequest(
                f"collection {name!r} has vectors of {collection.dimension} numbers, expected "
                f"{self._dimension}: choose another name"
            )
        return collection

    def drop(self, name: str) -> int:
        """Delete a collection of any model; return how many items it had. Raises NotFound."""
        count = len(self.of_any_model(name))
        self._remove(self._stored(name))
        return count

    def describe(self, name: str = "") -> list[Description]:
        """Describe one collection, or all of them by name. Raises NotFound."""
        if name:
            check_name(name)
        names = [name] if name else self._names()
        found = [(each, self._describe(self._stored(each))) for each in names]
        if name and not found[0][1]:
            raise _no_collection(name)
        return [replace(description, name=each) for each, description in found if description]

    def _names(self) -> list[str]:
        names, ours = self._all_names(), self._stored("")
        if self._tenant is None:
            return names
        return [
            name.removeprefix(ours)
            for name in names
            if name.startswith(ours) and OF not in name.removeprefix(ours)
        ]

    def _stored(self, name: str) -> str:
        return f"{self._tenant}{OF}{name}" if self._tenant else name

    def _found(self, name: str) -> Collection | None:
        check_name(name)
        return self._find(self._stored(name))

    def _describe(self, name: str) -> Description | None:
        found = self._find(name)
        if found is None:
            return None
        return Description(name, len(found), found.dimension, found.digest, found.dtype)

    @abstractmethod
    def close(self) -> None:
        """Close the index; it cannot be used afterwards."""

    @abstractmethod
    def _all_names(self) -> list[str]: ...

    @abstractmethod
    def _find(self, name: str) -> Collection | None: ...

    @abstractmethod
    def _make(self, name: str, dtype: str) -> Collection: ...

    @abstractmethod
    def _remove(self, name: str) -> None: ...


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
            f"collection {own(name)!r} was made with model {checkpoint.shown(digest)}, this "
            f"service runs {checkpoint.shown(ours)}, and their vectors cannot be compared: index "
            "the images again under another name (samclip reindex), or delete the collection first"
        )


def check_dtype(name: str, dtype: str, ours: str) -> None:
    """Raise InvalidRequest unless a collection's vectors have the precision of the new ones."""
    if dtype != ours:
        setting, here = dtype.partition(":")[0], ours.partition(":")[0]
        raise InvalidRequest(
            f"collection {own(name)!r} has vectors computed in {dtype or 'an unknown precision'}, "
            f"but this service computes in {ours}, and a collection cannot mix precisions: "
            + (f"set SAMCLIP_DTYPE to {setting}, or " if setting not in ("", here) else "")
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
        f"no item {id[:80]!r} in collection {own(name)!r}: index it first, or search by text or "
        "image"
    )


def own(name: str) -> str:
    """Return a stored name without its tenant."""
    return name.rpartition(OF)[2]


def to_bytes(vector_D: NDArray[np.float32]) -> bytes:
    """Return a vector as it is stored: little-endian float32."""
    return np.ascontiguousarray(vector_D, "<f4").tobytes()


def to_vector(stored: bytes) -> NDArray[np.float32]:
    """Return the vector D of ``to_bytes``."""
    return np.frombuffer(stored, "<f4")
