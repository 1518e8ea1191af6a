"""One request for everything: the picture and its tiles, round by round, to messages."""

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from functools import partial
from typing import Any

from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers import everything, segment_everything
from samclip_core.answers.tiles import NO_LOGITS, Tiling, is_tiled
from samclip_core.config import MAX_POINTS_PER_SIDE
from samclip_core.errors import InvalidRequest
from samclip_core.types import EverythingMask
from services.batching.decoder import Decoder
from services.heads.head import HeadService
from services.heads.runner import Runner, Work
from services.request import wire
from services.request.context import RequestContext
from services.request.limits import (
    check_labels,
    check_mask_pixels,
    check_masks,
    check_range,
)
from services.settings import Settings


class Everything:
    """What one request asks for: a ``reply``, or ``updates`` to follow the search."""

    def __init__(
        self,
        head: HeadService,
        decoder: Decoder,
        context: RequestContext,
        request: pb.SegmentEverythingRequest,
        streams: bool = False,
    ) -> None:
        """Check the request. An answer that ``streams`` is no panoptic picture.

        Raises InvalidRequest and InvalidLabels.
        """
        _check(request, head.settings)
        self._head, self._context, self._request = head, context, request
        self._asked = segment_everything.Everything(
            request.points_per_side or head.config.points_per_side,
            [*request.labels],
            request.vocabulary,
            request.min_label_score if request.HasField("min_label_score") else None,
            Tiling(request.tiles, head.settings.max_tiles),
            followed=streams,
        )
        work: Work = partial(decoder.run_long, context.in_bulk().priority)
        if self._asked.by_regions(head.config):
            work = partial(head.workers.run_steps, context.priority, "encode")
        program = self._asked.program(head.config, decoder.terms)
        self._runner = Runner(head, context, request.image, program, work)

    async def updates(self) -> AsyncGenerator[pb.EverythingUpdate, None]:
        """Yield what each round finds, and what it withdraws."""
        await self._runner.begin()
        changes, sent, priority = everything.Changes[Any](), 0, self._context.priority
        update = pb.EverythingUpdate(image=self._runner.info, model=self._model)
        async with aclosing(self._runner.rounds()) as rounds:
            async for one in rounds:
                update.progress = one.progress
                found = await self._head.workers.run(priority, "encode", one.found)
                new, update.withdrawn[:] = changes.since(found)
                sent += len(new)
                masks = await self._masks(map(one.named, new.values()), sent)
                for number, mask in zip(new, masks, strict=True):
                    update.found.add(id=number, mask=mask)
                yield update
                update = pb.EverythingUpdate()

    @property
    def _model(self) -> pb.ModelInfo:
        return self._head.model_in(self._runner.features.dtype)

    async def _masks(self, named: Iterable[EverythingMask], total: int) -> list[pb.Mask]:
        """Encode masks, which make ``total`` with those of the same answer so far."""
        encoding = self._request.encoding
        side = self._head.config.logits_side
        check_masks(total, self._runner.features.geometry, encoding, side)
        made = (wire.to_everything_mask(mask, encoding) for mask in named)
        counted = self._context.reply.within(made)
        return await self._head.workers.drain(self._context.priority, "encode", counted)

    async def reply(self) -> pb.SegmentEverythingResponse:
        """Return the regions, or what the rounds of the request's own search find."""
        await self._runner.begin()
        named, size = await self._runner.result(), self._runner.features.geometry
        reply = pb.SegmentEverythingResponse(image=self._runner.info, model=self._model)
        if self._request.encoding != pb.PANOPTIC:
            masks = await self._masks(named, len(named))
            reply.masks.extend(sorted(masks, key=lambda mask: -mask.area))
            return reply
        check_mask_pixels(len(named), size, pb.PANOPTIC)
        names = tuple(self._asked.names)
        made = partial(wire.to_panoptic, named, size, names)
        panoptic = await self._head.workers.run(self._context.priority, "encode", made)
        reply.panoptic.CopyFrom(panoptic)
        self._context.reply.add(len(reply.panoptic.png))
        return reply


def _check(request: pb.SegmentEverythingRequest, settings: Settings) -> None:
    """Raise InvalidRequest or InvalidLabels for a request that cannot be answered."""
    default = " (0: the checkpoint's default)"
    check_range("points_per_side", request.points_per_side, MAX_POINTS_PER_SIDE, default)
    if request.labels:
        check_labels(request.labels, settings.max_labels)
    if request.HasField("min_label_score"):
        check_range("min_label_score", request.min_label_score, 1)
    if is_tiled(request.tiles) and request.encoding == pb.LOGITS:
        raise InvalidRequest(NO_LOGITS)
