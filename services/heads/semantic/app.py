"""Semantic segmentation as a Serve application: a label for every pixel, from text."""

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers import semantic
from samclip_core.answers.explain import Explain, Label
from samclip_core.answers.head import Answer, Ask
from samclip_core.answers.request import Request
from samclip_core.answers.steps import Question, Terms, answer
from samclip_core.answers.tiles import (
    NO_REFINING,
    Part,
    SegmentTiles,
    check_mosaic,
    check_tiles,
    is_tiled,
)
from samclip_core.errors import InvalidRequest
from samclip_core.io import masks
from samclip_core.types import ImageFeatures, MaskSet, SemanticMap
from services.batching.queue import prompts_per_step
from services.batching.threads import Places, Threads
from services.deployment import replica
from services.heads.head import Head
from services.heads.tiles import Tiler
from services.request import wire
from services.request.context import RequestContext
from services.request.limits import check_encoding, check_labels, check_mask_pixels, check_text
from services.request.rpc import rpc
from services.settings import Settings

if TYPE_CHECKING:
    from ray.serve import Application

T = TypeVar("T")
Encoded = TypeVar("Encoded")

TURNS = 2
"""Requests whose steps alternate on the device: a short one overtakes a long one. Each keeps the
maps of all its classes in memory, and the answer until it is encoded."""


class Semantic(Head):
    """Compares the dense CLIP map with texts; refines outlines with the SAM head."""

    name = "SemanticSegmentationService"
    application = "semantic"

    def __init__(self, settings: Settings, **given: Any):
        super().__init__(settings, **given)
        at_once = prompts_per_step(settings.device, settings.max_prompt_batch)
        self._terms = Terms.of(self.sam_head, at_once)
        self._device, self._turns = Threads("device", 1), Places("maps", TURNS)
        self._explain = Explain()
        self._explain.fit(self.config)
        self._tiler = Tiler(self)

    async def close(self) -> None:
        await super().close()
        self._device.close()

    @rpc
    async def SegmentText(
        self, request: pb.SegmentTextRequest, context: RequestContext
    ) -> pb.SegmentTextResponse:
        """Return a label for every pixel: a map as PNG, and the region of each label.

        Needs CLIP_DENSE, and SAM for sharp outlines. Raises InvalidRequest, InvalidLabels, NotFound
        of a concept, and the errors of ``encode``.
        """
        check_encoding(request.encoding)
        if request.encoding == pb.LOGITS:
            raise InvalidRequest("semantic regions have no logits: choose RLE, PNG or POLYGONS")
        check_labels(request.labels, self.settings.max_labels)
        check_tiles(request.tiles, self.settings.max_tiles)
        if is_tiled(request.tiles) and request.refine:
            raise InvalidRequest(NO_REFINING)
        asked = semantic.SegmentText([*request.labels], request.background, request.refine)
        info, features = await self.encode(context, request.image, asked)
        if request.encoding != pb.RLE:  # RLE costs the same for any number of labels
            check_mask_pixels(len(request.labels), features.geometry, request.encoding)

        async def encode(found: SemanticMap) -> tuple[list[pb.Region], bytes]:
            made = context.reply.within(wire.to_regions(found, request.encoding))
            regions = await self.workers.drain(context.priority, "encode", made)
            of_map = partial(masks.encode_label_map, found.label_map_HW, len(request.labels))
            return regions, await self.workers.run(context.priority, "encode", of_map)

        answered: Request[SemanticMap] = asked
        if crops := self._tiler.of(info, request.tiles, asked):
            check_mosaic(crops, len(asked.texts), features)
            tiles = self._tiler.encode(context, request.image, info, crops, asked)
            async with aclosing(tiles):
                parts: list[Part] = [(None, features), *[part async for part in tiles]]
            answered = SegmentTiles(asked, parts)
        regions, label_map = await self._answer(context, features, answered, encode)
        context.reply.add(len(label_map))
        return pb.SegmentTextResponse(
            image=info,
            label_map_png=label_map,
            regions=regions,
            model=self.model_in(features.dtype),
        )

    @rpc
    async def Explain(
        self, request: pb.ExplainRequest, context: RequestContext
    ) -> pb.ExplainResponse:
        """Return where the model sees a label among others: a heat map as PNG.

        Needs what SegmentText needs, and raises its errors.
        """
        check_text(request.label, "the label")
        for index, other in enumerate(request.others[: self.settings.max_labels]):
            check_text(other, f"other {index}")
        check_labels([request.label, *request.others], self.settings.max_labels)
        asked = Ask(self._explain, Label(request.label, request.others))
        info, features = await self.encode(context, request.image, asked)

        async def encode(found: Answer) -> pb.ExplainResponse:
            as_png = partial(masks.write_png, found["map"])
            png = await self.workers.run(context.priority, "encode", as_png)
            return pb.ExplainResponse(heat_png=png, low=found["low"], high=found["high"])

        reply = await self._answer(context, features, asked, encode)
        reply.MergeFrom(pb.ExplainResponse(image=info, model=self.model_in(features.dtype)))
        return reply

    async def _answer(
        self,
        context: RequestContext,
        features: ImageFeatures,
        asked: Request[T],
        encode: Callable[[T], Awaitable[Encoded]],
    ) -> Encoded:
        """Answer a request in steps, and ``encode`` the answer, whose pixels take much memory.

        Stops when its caller gives up.
        """
        steps = await self.steps(context, features, asked, self._terms)
        priority, stage = context.priority, "mask_decode"

        async def ask(question: Question) -> list[MaskSet]:
            return await self._device.run(priority, stage, answer, self.sam_head, question)

        async with self._turns.held(priority):
            return await encode(await self._device.run_steps(priority, stage, steps, ask))


def build(settings: Settings) -> "Application":
    """Return the application for ``serve.run``."""
    return replica.deploy(Semantic, settings, gpus=0.25)
