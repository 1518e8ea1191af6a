"""Semantic segmentation as a Serve application: a label for every pixel, from text."""

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers import explain, semantic
from samclip_core.answers.dense import background_words
from samclip_core.answers.proxy_attention import attend
from samclip_core.answers.steps import Done, Question, Steps, Terms, advance, answer
from samclip_core.errors import InvalidRequest
from samclip_core.io import masks
from samclip_core.types import HeatMap, ImageFeatures, MaskHead, SemanticMap
from services.batching import threads
from services.batching.batcher import prompts_per_step
from services.deployment import replica
from services.heads.head import Head
from services.request import wire
from services.request.context import RequestContext
from services.request.limits import check_encoding, check_labels, check_mask_pixels, check_text
from services.request.peer import Callee
from services.request.rpc import rpc
from services.settings import Settings

if TYPE_CHECKING:
    from ray.serve import Application

T = TypeVar("T")

OUTPUTS = (pb.CLIP_DENSE, pb.SAM)
"""The SAM embedding says which cells of the dense CLIP map belong together."""
TURNS = 2
"""Requests whose steps alternate on the device: a short one overtakes a long one. Each keeps the
maps of all its classes in memory."""


class Semantic(Head):
    """Compares the dense CLIP map with texts; refines outlines with the SAM head."""

    name = "SemanticSegmentationService"
    application = "semantic"

    def __init__(
        self, settings: Settings, peer: Callee | None = None, sam_head: MaskHead | None = None
    ):
        super().__init__(settings, peer)
        self._sam_head = sam_head or replica.sam_head(settings)
        self._device = ThreadPoolExecutor(1, "device")
        self._turns = asyncio.Semaphore(TURNS)
        self._encoders = ThreadPoolExecutor(os.cpu_count(), "encode")

    @rpc
    async def SegmentText(
        self, request: pb.SegmentTextRequest, context: RequestContext
    ) -> pb.SegmentTextResponse:
        check_encoding(request.encoding)
        if request.encoding == pb.LOGITS:
            raise InvalidRequest(
                "semantic regions have no logits: choose RLE, PNG, POLYGONS or PACKED_BITS"
            )
        check_labels(request.labels, self.settings.max_labels)
        # The SAM head reads only the frame of masks.
        size = self.config.image_size if request.refine else self.config.size_of("semantic")
        info, features = await self.backbone.features(context, request.image, *OUTPUTS, size=size)
        if request.encoding != pb.RLE:  # RLE costs the same for any number of labels
            check_mask_pixels(len(request.labels), features.geometry, request.encoding)
        words = background_words(request.labels) if request.background else ()
        text_XD = await self.backbone.class_embeddings(
            context, (*request.labels, *words), self.config.templates
        )
        found = await self._run(self._segment(features, request, text_XD))
        made = context.reply.within(wire.to_regions(found, request.encoding))
        regions = await threads.drain(self._encoders, "encode", made)
        label_map = await threads.run(
            self._encoders, "encode", wire.to_label_map, found, len(request.labels)
        )
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
        check_text(request.label, "the label")
        for index, other in enumerate(request.others[: self.settings.max_labels]):
            check_text(other, f"other {index}")
        labels = [request.label, *request.others]
        check_labels(labels, self.settings.max_labels)
        size = self.config.size_of("semantic")
        info, features = await self.backbone.features(context, request.image, *OUTPUTS, size=size)
        text_LD = await self.backbone.class_embeddings(context, labels, self.config.templates)
        found = await self._run(self._explain(features, labels, text_LD))
        png = await threads.run(self._encoders, "encode", masks.write_png, found.levels_HW)
        return pb.ExplainResponse(
            image=info,
            heat_png=png,
            low=found.low,
            high=found.high,
            model=self.model_in(features.dtype),
        )

    async def _run(self, steps: Steps[T]) -> T:
        """Run work in steps; stops when its caller gives up."""
        async with self._turns:
            step = await threads.run(self._device, "mask_decode", advance, steps, None)
            while not isinstance(step, Done):
                step = await threads.run(self._device, "mask_decode", self._next, steps, step)
            return step.result

    def _next(self, steps: Steps[T], question: Question | None) -> Question | Done[T] | None:
        return advance(steps, answer(self._sam_head, question))

    def _segment(
        self, features: ImageFeatures, request: pb.SegmentTextRequest, text_XD: NDArray[np.float32]
    ) -> Steps[SemanticMap]:
        """Return the steps; ``text_XD`` has the labels, then the background words if requested."""
        labels, scale = request.labels, self.config.logit_scale
        text_LD, background_KD = np.split(text_XD, [len(labels)])
        background = background_KD if len(background_KD) else None
        if request.refine:
            at_once = prompts_per_step(self.settings.device, self.settings.max_prompt_batch)
            terms = Terms.of(self._sam_head, at_once)
            return (
                yield from semantic.refine_steps(
                    features, text_LD, labels, scale, terms, request.background, background
                )
            )
        return (
            yield from semantic.segment_text_steps(
                attend(features), text_LD, labels, scale, request.background, background
            )
        )

    def _explain(
        self, features: ImageFeatures, labels: Sequence[str], text_LD: NDArray[np.float32]
    ) -> Steps[HeatMap]:
        scale = self.config.logit_scale
        return (yield from explain.explain_steps(attend(features), text_LD, labels, scale))


def build(settings: Settings) -> "Application":
    """Return the application for ``serve.run``."""
    return replica.of(Semantic, settings, gpus=0.25)
