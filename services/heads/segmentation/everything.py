"""One request for everything: the picture and its tiles, round by round, to messages."""

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import replace
from functools import partial

from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers import everything
from samclip_core.answers.areas import Namer
from samclip_core.answers.everything import Found
from samclip_core.answers.tiles import (
    NO_LOGITS,
    PlacedMask,
    check_tiles,
    is_tiled,
    of_everything,
    place,
)
from samclip_core.errors import InvalidRequest
from samclip_core.geometry import Crop, Geometry
from samclip_core.types import EverythingMask, ImageFeatures
from services.batching.decoder import Decoder
from services.heads.head import Head
from services.heads.tiles import Tiler
from services.request import wire
from services.request.context import RequestContext
from services.request.limits import (
    MAX_POINTS_PER_SIDE,
    check_encoding,
    check_labels,
    check_mask_pixels,
    check_masks,
    check_range,
)
from services.settings import Settings


class Everything:
    """What one request asks for: ``begin``, then ``reply``, or ``updates`` to follow the search."""

    info: pb.ImageInfo
    _features: ImageFeatures
    _namer: Namer | None = None

    def __init__(
        self,
        head: Head,
        decoder: Decoder,
        tiler: Tiler,
        request: pb.SegmentEverythingRequest,
        streams: bool = False,
    ) -> None:
        """Check the request. An answer that ``streams`` is no panoptic picture.

        Raises InvalidRequest and InvalidLabels.
        """
        check_encoding(request.encoding, panoptic=not streams)
        _check(request, head.settings)
        self._head, self._decoder, self._tiler = head, decoder, tiler
        self._request = request
        self._asked = everything.Everything(
            request.points_per_side or head.config.points_per_side,
            [*request.labels],
            request.vocabulary,
            request.min_label_score if request.HasField("min_label_score") else None,
            own_search=streams and not is_tiled(request.tiles),
        )
        settings = everything.settings_of(head.config)
        self._search = everything.Search(decoder.terms, settings)
        self._placed: list[PlacedMask] = []

    async def begin(self, context: RequestContext, image: pb.Image) -> None:
        """Encode the image, and embed the labels."""
        head, self._context, self._image = self._head, context, image
        names = self._asked.names
        self.info, self._features = await head.encode(context, image, self._asked, labels=names)
        if names:
            text_LD = await head.backbone.class_embeddings(context, names, head.config.templates)
            self._namer = self._asked.namer(text_LD, head.config)

    @property
    def model(self) -> pb.ModelInfo:
        return self._head.model_in(self._features.dtype)

    async def _rounds(self) -> AsyncGenerator[float]:
        """Search; yield the share of the work that is done.

        After each round of a search; or, of regions, after the picture and each of its tiles.
        """
        done = 0.0
        async with aclosing(self._parts()) as parts:
            async for crop, features, share in parts:
                if features.regions_N is None:
                    for steps in self._search.rounds(features, self._asked.points_per_side, crop):
                        await self._decoder.run_long(self._context.in_bulk().priority, steps)
                        yield done + share * self._search.progress
                else:
                    await self._add(features, crop)
                    yield min(1.0, done + share)
                done += share

    async def _add(self, features: ImageFeatures, crop: Crop | None) -> None:
        """Add the regions of a part to those that are kept of the parts before it."""
        workers, priority = self._head.workers, self._context.priority
        made = place(everything.of_regions(features, self._namer), crop)
        every = [*self._placed, *await workers.drain(priority, "encode", made)]
        self._placed = await workers.run(priority, "encode", of_everything, every)

    async def _found(self) -> list[Found] | list[EverythingMask]:
        """Return what is found so far."""
        if self._features.regions_N is not None:
            return [one.mask for one in self._placed]
        return await self._head.workers.run(
            self._context.priority, "encode", lambda: self._search.found
        )

    async def _parts(self) -> AsyncGenerator[tuple[Crop | None, ImageFeatures, float]]:
        """Yield the picture (None), then its tiles, with its share of the work."""
        tiles = self._tiler.of(self.info, self._request.tiles, self._asked)
        share = 1 / (1 + len(tiles))
        yield None, self._features, share
        encoded = self._tiler.encode(self._context, self._image, self.info, tiles, self._asked)
        async with aclosing(encoded) as several:
            async for crop, features in several:
                geometry = Geometry(crop.height, crop.width, features.geometry.size)
                yield crop, replace(features, geometry=geometry), share

    async def updates(self) -> AsyncGenerator[pb.EverythingUpdate, None]:
        """Yield what each round finds, and what it withdraws."""
        changes, sent = everything.Changes[Found | EverythingMask](), 0
        update = pb.EverythingUpdate(image=self.info, model=self.model)
        async with aclosing(self._rounds()) as rounds:
            async for update.progress in rounds:
                new, update.withdrawn[:] = changes.since(await self._found())
                sent += len(new)
                masks = await self._masks(map(self._named, new.values()), sent)
                for number, mask in zip(new, masks, strict=True):
                    update.found.add(id=number, mask=mask)
                yield update
                update = pb.EverythingUpdate()

    async def _masks(self, named: Iterable[EverythingMask], total: int) -> list[pb.Mask]:
        """Encode masks, which make ``total`` with those of the same answer so far."""
        encoding = self._request.encoding
        side = self._head.config.logits_side
        check_masks(total, self._features.geometry, encoding, side)
        made = (wire.to_everything_mask(mask, encoding) for mask in named)
        counted = self._context.reply.within(made)
        return await self._head.workers.drain(self._context.priority, "encode", counted)

    async def reply(self) -> pb.SegmentEverythingResponse:
        """Return the regions, or what the rounds of the request's own search find."""
        named, size = await self._every_mask(), self._features.geometry
        reply = pb.SegmentEverythingResponse(image=self.info, model=self.model)
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

    async def _every_mask(self) -> list[EverythingMask]:
        """Return all masks with their names, for a panoptic picture the largest first."""
        workers, priority = self._head.workers, self._context.priority
        if self._features.regions_N is not None and not is_tiled(self._request.tiles):
            made = everything.of_regions(self._features, self._namer)
            return await workers.drain(priority, "encode", made)
        async with aclosing(self._rounds()) as rounds:
            async for _ in rounds:
                pass
        found = await self._found()
        if self._request.encoding == pb.PANOPTIC and self._features.regions_N is None:
            found = await workers.run(
                priority, "encode", everything.largest_first, self._search.found
            )
        return await workers.drain(priority, "encode", map(self._named, found))

    def _named(self, one: Found | EverythingMask) -> EverythingMask:
        if isinstance(one, EverythingMask):
            return one
        return self._namer.name(one.mask, one.features) if self._namer else one.mask


def _check(request: pb.SegmentEverythingRequest, settings: Settings) -> None:
    """Raise InvalidRequest or InvalidLabels for a request that cannot be answered."""
    default = " (0: the checkpoint's default)"
    check_range("points_per_side", request.points_per_side, MAX_POINTS_PER_SIDE, default)
    check_tiles(request.tiles, settings.max_tiles)
    if request.labels:
        check_labels(request.labels, settings.max_labels)
    if request.HasField("min_label_score"):
        check_range("min_label_score", request.min_label_score, 1)
    if is_tiled(request.tiles) and request.encoding == pb.LOGITS:
        raise InvalidRequest(NO_LOGITS)
