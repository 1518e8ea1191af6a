"""The index of image vectors: the interface of its engines, and the rules they share."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.steps import Steps
from samclip_core.errors import InvalidRequest
from services.retrieval import object_search, objects
from services.retrieval.checks import (
    OF,
    check_collections,
    check_dtype,
    check_items,
    check_model,
    check_name,
    check_objects,
    no_collection,
    no_item,
    own,
)
from services.retrieval.query import Query
from services.settings import Settings

T = TypeVar("T")
OF_CONCEPTS = "+concepts"
"""Follows the tenant in the stored names of its concepts; no name has a plus sign."""
ObjectHit = tuple[pb.Hit, objects.Object]
PAGE = 256
"""Items that are read or written at once where a whole collection is."""


@dataclass(frozen=True, eq=False)
class Item:
    """An image to store; ``vector_D`` is float32 of unit length.

    ``objects`` are packed (``services.retrieval.objects``), or empty if none were indexed.
    """

    id: str
    vector_D: NDArray[np.float32]
    metadata: Mapping[str, str]
    objects: bytes = b""


@dataclass(frozen=True)
class Description:
    """Summary of a collection."""

    name: str
    count: int
    dimension: int
    digest: str
    dtype: str
    objects: int = 0


class Collection(ABC):
    """A named set of images, with vectors of the model ``digest``. Not thread-safe.

    The image encoder computed all vectors in the precision ``dtype``. An image and its objects are
    added, replaced and deleted together.
    """

    name: str
    digest: str
    dimension: int
    dtype: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def count_objects(self, ids: Set[str] | None = None) -> int:
        """Return the number of objects, of all items or of those with these ids."""

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

    def vector(self, id: str) -> NDArray[np.float32]:
        """Return the vector of an item, D. Raises NotFound."""
        for vector_D in self.vectors_of([id]).values():
            return vector_D
        raise no_item(id, self.name)

    def search(self, query: Query) -> Steps[list[pb.Hit]]:
        """Return the nearest items by cosine, best first; with a filter, compare all vectors.

        The collection may change between two steps.
        """
        return self._as_it_begins(lambda collection: collection._nearest(query))

    def search_objects(self, query: Query) -> Steps[list[ObjectHit]]:
        """Return the items with the nearest objects by cosine, each with the one that is meant.

        All objects are compared; the collection may change between two steps. Raises InvalidRequest
        if there are none.
        """
        return self._as_it_begins(lambda collection: collection._nearest_objects(query))

    def _as_it_begins(self, search: Callable[[Self], Steps[T]]) -> Steps[T]:
        """Search the collection without changes after the first step, if the engine can do that.

        Raises Unavailable.
        """
        return search(self)

    @abstractmethod
    def _nearest(self, query: Query) -> Steps[list[pb.Hit]]: ...

    def _nearest_objects(self, query: Query) -> Steps[list[ObjectHit]]:
        if not self.count_objects():
            raise InvalidRequest(
                f"collection {own(self.name)!r} has no objects: index its images with objects "
                "(samclip index --objects), or search for whole images"
            )
        pages = self._objects(query.filter or {})
        score = dict((yield from object_search.nearest(pages, query, self.dimension)))
        listed, hits = self.listed([*score]), list[ObjectHit]()
        for start in range(0, len(listed), object_search.PAGE):
            if start:
                yield None
            page = listed[start : start + object_search.PAGE]
            packed = self._packed_of([item.id for item in page])
            for item in page:
                if item.id in packed:
                    hit = pb.Hit(id=item.id, score=score[item.id], metadata=item.metadata)
                    hits.append((hit, object_search.meant(packed[item.id], query, self.dimension)))
        return hits

    @abstractmethod
    def _objects(self, filter: Mapping[str, str]) -> Iterator[object_search.Page]:
        """Yield the packed objects of the items with this metadata, page by page."""

    @abstractmethod
    def _packed_of(self, ids: Sequence[str]) -> dict[str, bytes]:
        """Return the packed objects of those items of these ids that have some."""

    @abstractmethod
    def listed(self, ids: Sequence[str]) -> list[pb.ListedItem]:
        """Return the items of these ids, in this order, without those that it does not have."""

    @abstractmethod
    def items(self, after: str, limit: int) -> list[pb.ListedItem]:
        """Return items in the UTF-8 byte order of their ids, starting after ``after``."""

    @abstractmethod
    def vectors_of(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Return the vectors, D, of those items of these ids that it has."""

    @abstractmethod
    def stored_of(self, ids: Sequence[str]) -> list[Item]:
        """Return the items of these ids that it has, with their vectors, in any order."""

    def stored(self) -> Iterator[Item]:
        """Yield all items with their vectors, in the order of ``items``.

        Raises InvalidRequest if the collection is made again with another model meanwhile.
        """
        after = ""
        while page := self.items(after, PAGE):
            stored = {item.id: item for item in self.stored_of([item.id for item in page])}
            yield from (stored[item.id] for item in page if item.id in stored)
            after = page[-1].id


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

    def every(self) -> list[Collection]:
        """Return all collections, by name."""
        found = (self._find(self._stored(name)) for name in self._names())
        return [collection for collection in found if collection is not None]

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
        self._check_vectors(name, collection)
        return collection

    def find(self, name: str) -> Collection | None:
        """Return a collection that may have vectors of another model, or None."""
        check_name(name)
        return self._find(self._stored(name))

    def of_any_model(self, name: str) -> Collection:
        """Return a collection to list or drop. Raises NotFound."""
        if (collection := self.find(name)) is None:
            raise no_collection(name)
        return collection

    def check_addable(self, name: str, ids: Set[str], settings: Settings, added: int = 0) -> None:
        """Raise InvalidRequest unless vectors of this model may be added under these names.

        ``added`` is the number of objects of all these items. The settings limit the number of
        collections, and those of the items and objects of each.
        """
        collection = self.find(name)
        if collection is None:
            check_collections(len(self), settings)
            check_items(name, 0, len(ids), settings)
            check_objects(name, 0, added, settings)
            return
        self._check_vectors(name, collection)
        check_items(name, len(collection), len(ids) - collection.holds(ids), settings)
        others = collection.count_objects() - collection.count_objects(ids) if added else 0
        check_objects(name, others, added, settings)

    def add(self, name: str, dtype: str, items: Sequence[Item], settings: Settings) -> int:
        """Add items to a collection, made for them if there is none; return how many it replaced.

        A collection of PyTorch's vectors takes those of any graphs, and from then on only of these.
        Raises InvalidRequest as ``check_addable`` and ``get_or_make`` do.
        """
        found = sum(objects.count(item.objects) for item in items)
        self.check_addable(name, {item.id for item in items}, settings, found)
        return self.get_or_make(name, dtype).upsert(items, self._digest)

    def get_or_make(self, name: str, dtype: str) -> Collection:
        """Return a collection to add vectors of this precision to. Raises InvalidRequest."""
        if (collection := self.find(name)) is None:
            collection = self._make(self._stored(name), dtype)
        self._check_vectors(name, collection)
        check_dtype(name, collection.dtype, dtype)
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
            raise no_collection(name)
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

    def _check_vectors(self, name: str, collection: Collection) -> None:
        """Raise InvalidRequest unless a collection's vectors are of this model, and as long."""
        check_model(name, collection.digest, self._digest)
        if collection.dimension != self._dimension:  # a backup that somebody has made up
            raise InvalidRequest(
                f"collection {name!r} has vectors of {collection.dimension} numbers, expected "
                f"{self._dimension}: choose another name"
            )

    def _describe(self, name: str) -> Description | None:
        if (found := self._find(name)) is None:
            return None
        digest, dtype, count = found.digest, found.dtype, found.count_objects()
        return Description(name, len(found), found.dimension, digest, dtype, count)

    def build(self) -> bool:
        """Do some of the work that makes searches faster; return whether there is more to do."""
        return False

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


def to_bytes(vector_D: NDArray[np.float32]) -> bytes:
    """Return a vector as it is stored: little-endian float32."""
    return np.ascontiguousarray(vector_D, "<f4").tobytes()


def to_vector(stored: bytes) -> NDArray[np.float32]:
    """Return the vector D of ``to_bytes``."""
    return np.frombuffer(stored, "<f4")
