"""The concepts of a tenant: names of one's own for vectors, kept in the index.

Those of one checkpoint are the items of a collection that no caller can name, so that they are as
durable as other collections, and in every backup. Their vectors depend on a checkpoint's weights,
and not noticeably on the precision or the graphs that computed them.

D width of the CLIP map, E of the SAM embedding, none without masks.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.concepts import MAX_NAME, no_concept
from samclip_core.answers.zero_shot import unit
from samclip_core.errors import InvalidRequest
from samclip_core.io import checkpoint
from services.retrieval.index import OF_CONCEPTS, Collections, Item
from services.settings import Settings

MAX_CONCEPTS = 1000
"""Most concepts of a tenant: a request that names one reads all."""


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
        self._sets = sets.of_model(digest, dimension + sam_dimension)
        self._ours = checkpoint.shown(digest)

    def all(self) -> dict[str, Concept]:
        """Return the concepts of every checkpoint by name, in order."""
        found = {
            item.id: self._concept(item, collection.digest)
            for collection in map(self._sets.of_any_model, self._names())
            for item in collection.stored()
        }
        return dict(sorted(found.items()))

    def named(self, names: list[str]) -> dict[str, Concept]:
        """Return the concepts of these names, in order. Raises NotFound."""
        found = self.all()
        for name in names:
            if name not in found:
                raise no_concept(name)
        return {name: found[name] for name in sorted({*names})}

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
        return found

    def check_addable(self, name: str) -> bool:
        """Return whether there is one of this name. Raises InvalidRequest if there are too many."""
        found = self.all()
        if name not in found and len(found) >= MAX_CONCEPTS:
            raise InvalidRequest(
                f"there are {MAX_CONCEPTS:,} concepts already, which is the limit: delete one"
            )
        return name in found

    def put(self, concept: Concept, settings: Settings) -> bool:
        """Store a concept of this checkpoint; return whether it replaced one of its name.

        Raises InvalidRequest if there are too many.
        """
        replaced = self.check_addable(concept.name)
        vector_N = np.concatenate([concept.clip_D, concept.sam_E])
        item = Item(concept.name, unit(vector_N), {"examples": str(concept.examples)})
        self._sets.add(self._ours, "", [item], settings)
        for other in set(self._names()) - {self._ours}:
            self._sets.of_any_model(other).delete([concept.name])
        return replaced

    def delete(self, name: str) -> None:
        """Delete a concept of any checkpoint. Raises NotFound."""
        names = self._names()
        if not sum(self._sets.of_any_model(each).delete([name]) for each in names):
            raise no_concept(name[:MAX_NAME])

    def _names(self) -> list[str]:
        """Return the names of the collections, that of this checkpoint last."""
        names = (description.name for description in self._sets.describe())
        return sorted(names, key=lambda name: (name == self._ours, name))

    def _concept(self, item: Item, digest: str) -> Concept:
        # Of another checkpoint they may have other widths, but then nobody reads them.
        clip_D, sam_E = np.split(item.vector_D, [self._dimension])
        examples = int(item.metadata["examples"])
        return Concept(item.id, examples, digest, unit(clip_D), unit(sam_E))
