"""The rpcs of concepts: what some examples show, stored under a name."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.areas import Area, embed_areas
from samclip_core.answers.concepts import check_name, of_examples
from samclip_core.answers.examples import ExampleVectors, Place, Vectors
from samclip_core.answers.request import of_part
from samclip_core.errors import InvalidPrompt, Unavailable
from samclip_core.io.masks import Runs
from samclip_core.types import Prompt
from services.cache.memory import MemoryTier
from services.heads.head import HeadService
from services.request import wire
from services.request.context import RequestContext
from services.request.fan_out import each
from services.request.limits import check_example_messages, check_most
from services.retrieval.concepts import Concept, Concepts
from services.retrieval.engine import IndexThread
from services.retrieval.index import Collections
from services.settings import Settings

logger = logging.getLogger(__name__)
T = TypeVar("T")


class ConceptRpcs(HeadService):
    """Makes concepts from examples, stores and lists them. Has the index in which they are."""

    def __init__(
        self,
        settings: Settings,
        index: IndexThread | None = None,
        memory: MemoryTier | None = None,
    ):
        super().__init__(settings, memory=memory)
        self.index = index or IndexThread(settings)
        try:
            self.every_tenants()
        except Unavailable as error:
            logger.warning("starting without the index: %s", error)

    def every_tenants(self) -> Collections:
        """Return all collections, for vectors of this model; only in the index's thread."""
        model = self.model.digest + self.model.graphs
        return self.index.collections(model, self.config.text_dim)

    async def ask_index(
        self, context: RequestContext, work: Callable[[Collections], T], weight: float = 1
    ) -> T:
        """Do work on the collections of the caller's tenant. Raises Unavailable.

        ``weight`` is relative to a small call, as for ``IndexThread.run``.
        """
        tenant = context.caller.tenant
        return await self.index.run(
            context.priority, lambda: work(self.every_tenants().of_tenant(tenant)), weight
        )

    async def ask_concepts(self, context: RequestContext, work: Callable[[Concepts], T]) -> T:
        """Do work on the concepts of the caller's tenant. Raises Unavailable."""
        tenant, config = context.caller.tenant, self.config
        sizes = config.text_dim, config.embed_dim if config.masks else 0
        return await self.ask_index(
            context, lambda ours: work(Concepts(ours, tenant, self.model.digest, *sizes))
        )

    async def PutConcept(
        self, request: pb.PutConceptRequest, context: RequestContext
    ) -> pb.PutConceptResponse:
        """Name what some examples show; replaces a concept of this name.

        Needs what ``example`` reads of each image. Raises InvalidRequest, InvalidPrompt with the
        number of the example, and the errors of the index and the backbone.
        """
        check_name(request.name)
        check_example_messages(request.examples)
        negative = [example.negative for example in request.examples]
        await self.ask_concepts(context, lambda ours: ours.check_addable(request.name))
        numbered = [*enumerate(request.examples)]
        made = await each(lambda one: self.example(context, one[1], one[0]), numbered)
        vectors = of_examples(made, negative, self.config.fitted.concepts)
        concept = Concept(request.name, len(negative), self.model.digest, *vectors)
        replaced = await self.ask_concepts(context, lambda ours: ours.put(concept, self.settings))
        return pb.PutConceptResponse(concept=_message(concept), replaced=replaced)

    async def DeleteConcept(
        self, request: pb.DeleteConceptRequest, context: RequestContext
    ) -> pb.DeleteConceptResponse:
        """Delete a concept, without an encoding. Raises NotFound and the errors of the index."""
        await self.ask_concepts(context, lambda ours: ours.delete(request.name))
        return pb.DeleteConceptResponse()

    async def ListConcepts(
        self, request: pb.ListConceptsRequest, context: RequestContext
    ) -> pb.ListConceptsResponse:
        """Return all concepts of the tenant or those named, with their vectors if ``inline``.

        Needs no encoding. Raises InvalidRequest, NotFound, and the errors of the index.
        """
        check_most(len(request.names), "{:,} names", self.settings.max_labels)
        names = [*request.names]
        if not request.inline:
            found = await self.ask_concepts(
                context, lambda ours: ours.named(names) if names else ours.all()
            )
            return pb.ListConceptsResponse(concepts=map(_message, found.values()), model=self.model)
        usable = await self.ask_concepts(context, lambda ours: ours.usable(names))
        reply = pb.ListConceptsResponse(
            concepts=map(_message, usable.values()),
            clip=wire.to_tensor(_rows([one.clip_D for one in usable.values()])),
            sam=wire.to_tensor(_rows([one.sam_E for one in usable.values()])),
            model=self.model,
        )
        context.reply.add(len(reply.clip.data) + len(reply.sam.data))
        return reply

    async def find_concepts(
        self, context: RequestContext, names: Sequence[str]
    ) -> dict[str, NDArray[np.float32]]:
        found = await self.ask_concepts(context, lambda ours: ours.usable([*names]))
        return {name: concept.clip_D for name, concept in found.items()}

    async def example(
        self, context: RequestContext, example: pb.Example, number: int = 0
    ) -> Vectors:
        """Return the vectors of an example; where it has no mask, it gets the SAM head's.

        A checkpoint without masks takes the box as it is. Raises InvalidRequest with the number.
        """
        masks = self.config.masks
        outputs = (pb.SAM, pb.CLIP_DENSE) if masks else (pb.CLIP_DENSE,)
        _, features = await self.backbone.features(context, example.image, *outputs)

        async def place_of(example: pb.Example) -> Place:
            to_place = partial(wire.to_place, example, name, features.geometry)
            return await self.workers.run(context.priority, "decode", to_place)

        name = f"example {number}"
        place = await place_of(example)
        ExampleVectors({name: place}).check(features.geometry)
        with of_part(name):
            if masks and isinstance(place, Prompt):
                place = await place_of(pb.Example(mask=await self._mask(context, example)))
            area = self._area(place)
        of_sam = [replace(features, clip_dense_Dhw=features.sam_Dhw)] if masks else []
        vectors = [embed_areas(each, [area]) for each in (features, *of_sam)]
        clip_D, *sam = await self.workers.drain(context.priority, "decode", chain(*vectors))
        return Vectors(clip_D, sam[0] if sam else np.empty(0, np.float32))

    def _area(self, place: Place) -> Area:
        """Return the part of its image that a place is. Raises InvalidPrompt for points."""
        if isinstance(place, Runs):
            return Area(mask=place)
        if place.box is None:
            raise InvalidPrompt(
                f"the checkpoint {self.config.name!r} makes no masks, and points alone are no "
                "area: give a box or a mask"
            )
        return Area(box=place.box)

    async def _mask(self, context: RequestContext, example: pb.Example) -> pb.CocoRle:
        """Return the mask of the object in an example's box, or at its points."""
        box = example.box if example.HasField("box") else None
        prompt = pb.Prompt(points=example.points.points, box=box)
        # A box is seldom ambiguous, and SAM's single mask fits it best.
        request = pb.SegmentRequest(image=example.image, prompts=[prompt], multimask=box is None)
        reply = await self.ask("segmentation", "Segment", request, context)
        found: pb.Mask = reply.results[0].masks[0]
        if not found.area:
            raise InvalidPrompt("no object was found there: give its mask")
        return found.rle


def _rows(vectors: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.stack(vectors) if vectors else np.empty((0, 0), np.float32)


def _message(concept: Concept) -> pb.Concept:
    return pb.Concept(name=concept.name, examples=concept.examples, model_digest=concept.digest)
