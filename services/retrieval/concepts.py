"""The concepts of a tenant: names of one's own for vectors, kept in the index.

Those of one checkpoint are the items of a collection that no caller can name, so that they are as
durable as other collections, and in every backup. Their vectors depend on a checkpoint's weights,
and not noticeably on the precision or the graphs that computed them.

D width of the CLIP map, E of the SAM embedding, none without masks.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.concepts import MAX_NAME, check_name, no_concept
from samclip_core.answers.zero_shot import unit
from samclip_core.errors import InvalidRequest
from samclip_core.io import checkpoint
from services.retrieval.checks import own
from services.retrieval.collection import Collection
from services.retrieval.index import OF_CONCEPTS, Collections
from services.retrieval.rows import Item
from services.settings import Settings

MAX_CONCEPTS = 1000
"""Most concepts of a tenant: a request that lists them reads all."""


COUNT = re.compile("[1-9][0-9]{0,8}")


def check_stored(set_name: str, digest: str, dtype: str) -> None:
    """Raise InvalidRequest unless a collection may be that of a tenant's concepts."""
    if own(set_name) != checkpoint.shown(digest) or dtype:
        raise InvalidRequest(
            f"the concepts {set_name!r} lack the name of the model that made them, or have a "
            "precision: expected a file that samclip backup wrote"
        )


def check_concept(item: Item) -> None:
    """Raise InvalidRequest unless an item may be a concept."""
    check_name(item.id)
    if [*item.metadata] != ["examples"] or not COUNT.fullmatch(item.metadata["examples"]):
        raise InvalidRequest(
            f"the metadata of concept {item.id!r} are not a number of examples, and nothing else: "
            "expected a file that samclip backup wrote"
        )
    if item.objects:
        raise InvalidRequest(f"concept {item.id!r} has objects, which only images have")


def check_count(count: int) -> None:
    """Raise InvalidRequest if a tenant may have no other concept."""
    if count >= MAX_CONCEPTS:
        raise InvalidRequest(
            f"there are {MAX_CONCEPTS:,} concepts already, which is the limit: delete one"
        )


@dataclass(frozen=True, eq=False)
class Concept:
    """A concept: its vectors have length 1. ``examples`` counts the negative ones too."""

    name: str
    examples: int
    digest: str
    clip_D: NDArray[np.float32]
    sam_E: NDArray[np.float32]


class Concepts:
    """The concepts of one tenant, of every checkpoint. Not thread-safe.

    ``digest`` is that of the checkpoint that makes new ones, ``dimension`` and ``sam_dimension``
    are D and E.
    """

    def __init__(
        self, every: Collections, tenant: str, digest: str, dimension: int, sam_dimension: int
    ):
        self._digest, self._dimension = digest, dimension
        sets = every.of_tenant(tenant + OF_CONCEPTS)
        self._width = dimension + sam_dimension
        self._sets = sets.of_model(digest, self._width)
        self._ours = checkpoint.shown(digest)

    def all(self) -> dict[str, Concept]:
        """Return the concepts of every checkpoint by name, in order."""
        return self._read(lambda collection: collection.stored())

    def named(self, names: list[str]) -> dict[str, Concept]:
        """Return the concepts of these names, in order. Raises NotFound."""
        found = self._read(lambda collection: collection.stored_of(names))
        for name in names:
            if name not in found:
                raise no_concept(name)
        return found

    def usable(self, names: list[str]) -> dict[str, Concept]:
        """Return the concepts of these names, or all, with vectors of this checkpoint.

        Raises NotFound, and InvalidRequest for a concept of another checkpoint.
        """
        found = self.named(names) if names else self.all()
        for concept in found.values():
            if not checkpoint.agree(concept.digest, self._digest):
                raise InvalidRequest(
                    f"concept {concept.name!r} was made with model "
                    f"{checkpoint.shown(concept.digest)}, this service runs "
                    f"{checkpoint.shown(self._digest)}, and their vectors cannot be compared: add "
                    "it again from its examples (samclip concept add)"
                )
            if len(concept.clip_D) + len(concept.sam_E) != self._width:
                raise InvalidRequest(
                    f"concept {concept.name!r} has vectors of another length, as a backup that "
                    "somebody has made up may have: add it again (samclip concept add)"
                )
        return found

    def check_addable(self, name: str) -> bool:
        """Return whether there is one of this name. Raises InvalidRequest if there are too many."""
        sets = self._every()
        there = any(each.holds({name}) for each in sets)
        if not there:
            check_count(sum(map(len, sets)))
        return there

    def put(self, concept: Concept, settings: Settings) -> bool:
        """Store a concept of this checkpoint; return whether it replaced one of its name.

        Raises InvalidRequest if there are too many.
        """
        replaced = self.check_addable(concept.name)
        vector_N = np.concatenate([concept.clip_D, concept.sam_E])
        item = Item(concept.name, unit(vector_N), {"examples": str(concept.examples)})
        before = {own(each.name): each for each in self._every()}
        ours = before.pop(self._ours, None)
        if ours is not None and not self._fits(ours):  # it may be empty
            self._sets.drop(self._ours)
        self._sets.add(self._ours, "", [item], settings)
        for other in before.values():
            other.delete([concept.name])
        return replaced

    def delete(self, name: str) -> None:
        """Delete a concept of any checkpoint. Raises NotFound."""
        if not sum(each.delete([name]) for each in self._every()):
            raise no_concept(name[:MAX_NAME])

    def _fits(self, ours: Collection) -> bool:
        """Return whether these are vectors of this checkpoint: a backup may be made up."""
        return checkpoint.agree(ours.digest, self._digest) and ours.dimension == self._width

    def _read(self, items: Callable[[Collection], Iterable[Item]]) -> dict[str, Concept]:
        """Return concepts of every checkpoint by name, in order; those of this one come first."""
        found = {
            item.id: self._concept(item, each.digest)
            for each in self._every()
            for item in items(each)
        }
        return dict(sorted(found.items()))

    def _every(self) -> list[Collection]:
        """Return the collections, that of this checkpoint last."""
        return sorted(self._sets.every(), key=lambda each: own(each.name) == self._ours)

    def _concept(self, item: Item, digest: str) -> Concept:
        # Of another checkpoint they may have other widths, but then nobody reads them.
        clip_D, sam_E = np.split(item.vector_D, [self._dimension])
        examples = int(item.metadata["examples"])
        return Concept(item.id, examples, digest, unit(clip_D), unit(sam_E))
