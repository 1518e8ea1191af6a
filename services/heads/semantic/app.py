"""Semantic segmentation as a Serve application: a label for every pixel, from text."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers import semantic
from samclip_core.answers.explain import Explain, Label
from samclip_core.answers.head import Answer, Ask
from samclip_core.answers.request import Request
from samclip_core.answers.steps import Steps, Terms
from samclip_core.answers.tiles import Tiling
from samclip_core.errors import InvalidRequest
from samclip_core.geometry import Geometry
from samclip_core.io import masks
from samclip_core.types import SemanticMap
from services.batching.queue import prompts_per_step
from services.batching.threads import Places, Threads
from services.deployment import replica
from services.heads.head import HeadService
from services.heads.runner import Runner, in_thread
from services.request import wire
from services.request.context import RequestContext
from services.request.limits import check_labels, check_mask_pixels, check_text
from services.settings import Settings

if TYPE_CHECKING:
    from ray.serve import Application

T = TypeVar("T")
Encoded = TypeVar("Encoded")

TURNS = 2
"""Requests whose steps alternate on the device: a short one overtakes a long one. Each keeps the
maps of all its classes in memory, and the answer until it is encoded."""


class Semantic(HeadService):
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

    async def close(self) -> None:
        await super().close()
        self._device.close()

    async def SegmentText(
        self, request: pb.SegmentTextRequest, context: RequestContext
    ) -> pb.SegmentTextResponse:
        """Return a label for every pixel: a map as PNG, and the region of each label.

        Needs CLIP_DENSE, and SAM for sharp outlines. Raises InvalidRequest, InvalidLabels, NotFound
        of a concept, and the errors of ``encode``.
        """
        if request.encoding == pb.LOGITS:
            raise InvalidRequest("semantic regions have no logits: choose RLE, PNG or POLYGONS")
        check_labels(request.labels, self.settings.max_labels)
        tiling = Tiling(request.tiles, self.settings.max_tiles)
        labels = [*request.labels]
        asked = semantic.SegmentText(labels, request.background, request.refine, tiling)

        def check(size: Geometry) -> None:
            if request.encoding != pb.RLE:  # RLE costs the same for any number of labels
                check_mask_pixels(len(request.labels), size, request.encoding)

        async def encode(found: SemanticMap) -> tuple[list[pb.Region], bytes]:
            made = context.reply.within(wire.to_regions(found, request.encoding))
            regions = await self.workers.drain(context.priority, "encode", made)
            of_map = partial(masks.encode_label_map, found.label_map_HW, len(request.labels))
            return regions, await self.workers.run(context.priority, "encode", of_map)

        (regions, label_map), runner = await self._answer(
            context, request.image, asked, encode, check
        )
        context.reply.add(len(label_map))
        return pb.SegmentTextResponse(
            image=runner.info,
            label_map_png=label_map,
            regions=regions,
            model=self.model_in(runner.features.dtype),
        )

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

        async def encode(found: Answer) -> pb.ExplainResponse:
            as_png = partial(masks.write_png, found["map"])
            png = await self.workers.run(context.priority, "encode", as_png)
            return pb.ExplainResponse(heat_png=png, low=found["low"], high=found["high"])

        reply, runner = await self._answer(context, request.image, asked, encode)
        model = self.model_in(runner.features.dtype)
        reply.MergeFrom(pb.ExplainResponse(image=runner.info, model=model))
        return reply

    async def _answer(
        self,
        context: RequestContext,
        image: pb.Image,
        asked: Request[T],
        encode: Callable[[T], Awaitable[Encoded]],
        check: Callable[[Geometry], None] = lambda size: None,
    ) -> tuple[Encoded, Runner[T]]:
        """Run a request's program, and ``encode`` its result, whose pixels take much memory.

        ``check`` may refuse a picture of this size. Stops when its caller gives up.
        """
        work = in_thread(self, self._device, self._turns, context.priority, encode)
        program: Steps[Any] = asked.program(self.config, self._terms)
        runner = Runner(self, context, image, program, work)
        await runner.begin()
        check(runner.features.geometry)
        return await runner.result(), runner


def build(settings: Settings) -> "Application":
    """Return the application for ``serve.run``."""
    return replica.deploy(Semantic, settings, gpus=0.25)
