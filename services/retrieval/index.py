"""The index of image vectors: the collections, by name, and the rules that they share."""

import copy
import logging
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Self

from samclip_core.answers import stored_objects as objects
from samclip_core.errors import InvalidRequest, Unavailable
from samclip_core.io import checkpoint
from services.retrieval.checks import (
    OF,
    check_collections,
    check_dtype,
    check_items,
    check_model,
    check_name,
    check_objects,
    no_collection,
)
from services.retrieval.collection import Collection
from services.retrieval.registry import Registry
from services.retrieval.rows import Item
from services.settings import Settings

OF_CONCEPTS = "+concepts"
"""Follows the tenant in the stored names of its concepts; no name has a plus sign."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Description:
    """Summary of a collection."""

    name: str
    count: int
    dimension: int
    digest: str
    dtype: str
    objects: int = 0
    version: int = field(default=0, compare=False)


class Collections:
    """The collections of an index or of one of its tenants, by name. Not thread-safe.

    PETS of a tenant is stored as TENANT@PETS. Other processes may change the same collections.
    """

    def __init__(self, registry: Registry, digest: str, dimension: int):
        """``digest`` and ``dimension`` are those of the model that computes the vectors."""
        self.registry = registry
        self._digest = digest
        self._dimension = dimension
        self._tenant: str | None = None  # all tenants

    def __len__(self) -> int:
        """Return the number of collections; concepts are not counted."""
        return sum(OF_CONCEPTS not in name for name in self._names())

    def every(self) -> list[Collection]:
        """Return all collections, by name."""
        found = (self.registry.find(self._stored(name)) for name in self._names())
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
        return self.registry.find(self._stored(name))

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
        check_room(collection, ids, added, settings)

    def add(self, name: str, dtype: str, items: Sequence[Item], settings: Settings) -> int:
        """Add items to a collection, made for them if there is none; return how many it replaced.

        A collection of PyTorch's vectors takes those of any graphs, and from then on only of these.
        Raises InvalidRequest as ``check_addable`` and ``get_or_make`` do.
        """
        return sum(self.add_together(name, dtype, [items], settings))

    def add_together(
        self, name: str, dtype: str, together: Sequence[Sequence[Item]], settings: Settings
    ) -> list[int]:
        """Add the items of several requests as ``add`` would, one after the other, at once."""
        latest = {item.id: item for items in together for item in items}
        found = sum(objects.count(item.objects) for item in latest.values())
        self.check_addable(name, latest.keys(), settings, found)
        collection = self.get_or_make(name, dtype)
        held, replaced = collection.held(latest), list[int]()
        for items in together:
            ids = {item.id for item in items}
            replaced.append(len(ids & held))
            held |= ids
        collection.upsert([*latest.values()], self._digest)
        return replaced

    def get_or_make(self, name: str, dtype: str) -> Collection:
        """Return a collection to add vectors of this precision to. Raises InvalidRequest."""
        if (collection := self.find(name)) is None:
            torch = self._digest[: checkpoint.DIGITS]  # the first items add the graphs
            made = self._stored(name), torch, self._dimension, dtype
            collection = self.registry.make(*made)
        self._check_vectors(name, collection)
        check_dtype(name, collection.dtype, dtype)
        return collection

    def drop(self, name: str) -> int:
        """Delete a collection of any model; return how many items it had. Raises NotFound.

        One whose table does not open counts as empty.
        """
        try:
            count = len(self.of_any_model(name))
        except Unavailable:
            count = 0
        self.registry.remove(self._stored(name))
        return count

    def describe(self, name: str = "") -> list[Description]:
        """Describe one collection, or by name all whose tables open. Raises NotFound."""
        if name:
            check_name(name)
            if found := self.described(name):
                return [found]
            raise no_collection(name)
        several, lost = list[Description](), list[Unavailable]()
        for each in self._names():
            try:
                several += filter(None, [self.described(each)])
            except Unavailable as error:
                logger.warning("left out: %s", error)
                lost.append(error)
        if lost and not several:
            raise lost[0]
        return several

    def described(self, name: str) -> Description | None:
        """Describe a collection, if it is there. Raises Unavailable, with its name."""
        try:
            if (found := self.registry.find(self._stored(name))) is None:
                return None
            model = found.dimension, found.digest, found.dtype
            return Description(name, len(found), *model, found.count_objects(), found.version)
        except Unavailable as error:
            raise Unavailable(f"collection {name!r} cannot be read: {error}") from error

    def _names(self) -> list[str]:
        names, ours = self.registry.names(), self._stored("")
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


def check_room(collection: Collection, ids: Set[str], added: int, settings: Settings) -> None:
    """Raise InvalidRequest unless items of these ids, with so many objects, may be added."""
    new = len(ids) - collection.holds(ids)
    check_items(collection.name, len(collection), new, settings)
    others = collection.count_objects() - collection.count_objects(ids) if added else 0
    check_objects(collection.name, others, added, settings)
