"""One request for everything: the picture and its crops, round by round, to messages."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers import everything
from samclip_core.answers.areas import Namer
from samclip_core.answers.everything import Found
from samclip_core.answers.points import check_layers
from samclip_core.errors import InvalidRequest, KeyUnknown
from samclip_core.geometry import Crop, Geometry
from samclip_core.io import image
from samclip_core.types import EverythingMask, ImageFeatures
from services.batching import threads
from services.batching.decoder import Decoder
from services.heads.head import Head
from services.request import wire
from services.request.context import RequestContext
from services.request.limits import (
    MAX_POINTS_PER_SIDE,
    check_encoding,
    check_labels,
    check_mask_pixels,
    check_masks,
    check_range,
    image_limits,
)


class Everything:
    """What one request asks for: ``begin``, then ``reply``, or ``updates`` to follow the search."""

    info: pb.ImageInfo
    _features: ImageFeatures
    _namer: Namer | None = None

    def __init__(
        self,
        head: Head,
        decoder: Decoder,
        request: pb.SegmentEverythingRequest,
        streams: bool = False,
    ) -> None:
        """Check the request. An answer that ``streams`` is no panoptic picture.

        Raises InvalidRequest, InvalidLabels and KeyUnknown.
        """
        check_encoding(request.encoding, panoptic=not streams)
        _check(request, head.settings.max_labels)
        self._head, self._decoder = head, decoder
        self._request = request
        self._asked = everything.Everything(
            request.points_per_side or head.config.points_per_side,
            [*request.labels],
            request.vocabulary,
            request.min_label_score if request.HasField("min_label_score") else None,
            request.crop_layers,
            own_search=streams,
        )
        settings = everything.settings_of(head.config)
        self._search = everything.Search(decoder.terms, settings)

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

    async def rounds(self) -> AsyncGenerator[float, None]:
        """Run the rounds; yield the share of the work that is done after each."""
        size = self._features.geometry
        crops = self._asked.crops(size.height, size.width)
        async with self._picture() as pixels_HW3:
            for done, crop in enumerate(crops):
                features = self._features
                if crop is not None and pixels_HW3 is not None:
                    features = await self._encode_crop(crop, crop.of(pixels_HW3))
                for steps in self._search.rounds(features, self._asked.points_per_side, crop):
                    await self._decoder.run_long(self._context.in_bulk(), steps)
                    yield (done + self._search.progress) / len(crops)

    async def updates(self) -> AsyncGenerator[pb.EverythingUpdate, None]:
        """Run the rounds; yield what each of them finds and withdraws."""
        changes, sent = everything.Changes(), 0
        update = pb.EverythingUpdate(image=self.info, model=self.model)
        async with aclosing(self.rounds()) as rounds:
            async for update.progress in rounds:
                new, update.withdrawn[:] = changes.since(self._search.found)
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
        return await threads.drain(self._head.workers, "encode", self._context.reply.within(made))

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
        made = threads.run(self._head.workers, "encode", wire.to_panoptic, named, size, names)
        reply.panoptic.CopyFrom(await made)
        self._context.reply.add(len(reply.panoptic.png))
        return reply

    async def _every_mask(self) -> list[EverythingMask]:
        """Return all masks with their names, for a panoptic picture the largest first."""
        workers = self._head.workers
        if self._features.regions_N is not None:
            return await threads.drain(
                workers, "encode", everything.of_regions(self._features, self._namer)
            )
        async with aclosing(self.rounds()) as rounds:
            async for _ in rounds:
                pass
        found = self._search.found
        if self._request.encoding == pb.PANOPTIC:
            found = await threads.run(workers, "encode", everything.largest_first, found)
        return await threads.drain(workers, "encode", map(self._named, found))

    def _named(self, one: Found) -> EverythingMask:
        return self._namer.name(one.mask, one.features) if self._namer else one.mask

    @asynccontextmanager
    async def _picture(self) -> AsyncIterator[NDArray[np.uint8] | None]:
        """Hold the pixels if there are crops; few requests do at once."""
        if not self._request.crop_layers:
            yield None
            return
        limits = image_limits(self._head.settings)
        async with self._decoder.pictures:
            encoded = self._image.encoded
            yield await threads.run(self._head.workers, "decode", image.decode, encoded, limits)

    async def _encode_crop(self, crop: Crop, pixels_HW3: NDArray[np.uint8]) -> ImageFeatures:
        """Return the features of a crop, which is sent to the backbone in the model's resolution.

        The backbone would resize it to that in any case.
        """
        geometry = Geometry(crop.height, crop.width, self._head.config.image_size)

        def fitted() -> bytes:
            return image.encode_png(geometry.fit(pixels_HW3))

        file = await threads.run(self._head.workers, "preprocess", fitted)
        image_message = pb.Image(encoded=file)
        _, features = await self._head.encode(self._context, image_message, self._asked)
        return replace(features, geometry=geometry)


def _check(request: pb.SegmentEverythingRequest, max_labels: int) -> None:
    """Raise InvalidRequest, InvalidLabels or KeyUnknown for a request that cannot be answered."""
    default = " (0: the checkpoint's default)"
    check_range("points_per_side", request.points_per_side, MAX_POINTS_PER_SIDE, default)
    check_layers(request.crop_layers)
    if request.labels:
        check_labels(request.labels, max_labels)
    if request.HasField("min_label_score"):
        check_range("min_label_score", request.min_label_score, 1)
    if request.crop_layers and request.encoding == pb.LOGITS:
        raise InvalidRequest(
            "the logits of a crop are no mask_input for the image: choose another encoding, or "
            "no crop_layers"
        )
    if request.crop_layers and request.image.WhichOneof("source") == "key":
        raise KeyUnknown("crops need the image's pixels, not only its key: send the image")
