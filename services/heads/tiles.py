"""The tiles of a large picture, each encoded by the backbone as a picture of its own."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.request import Needs
from samclip_core.answers.tiles import tiles_of
from samclip_core.errors import KeyUnknown
from samclip_core.geometry import Crop, Geometry
from samclip_core.io import image as pixels
from samclip_core.types import ImageFeatures
from services.batching import threads
from services.heads.head import Head
from services.request.context import RequestContext
from services.request.limits import image_limits

PICTURES = 2
"""Pictures whose pixels a process holds at once, some 200 MB each; other requests wait."""
KEYS = 16_384
"""Tiles whose keys are remembered: so many need no pixels for a second question."""


class Tiler:
    """Encodes the tiles of pictures for one head."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._pictures = asyncio.Semaphore(PICTURES)
        self._keys = LRUCache[tuple[str, Crop, int], str](KEYS)

    def of(self, info: pb.ImageInfo, count: int, asked: Needs) -> list[Crop]:
        """Return the tiles of a picture. Raises InvalidRequest for tiles that are too small."""
        side = asked.size(self._head.config)
        return tiles_of(info.height, info.width, count, side, self._head.settings.max_tiles)

    async def encode(
        self,
        context: RequestContext,
        image: pb.Image,
        info: pb.ImageInfo,
        crops: Sequence[Crop],
        *asked: Needs,
    ) -> AsyncGenerator[tuple[Crop, ImageFeatures]]:
        """Yield each tile with the outputs that the requests need.

        ``info`` is that of the whole picture. Raises KeyUnknown if the request has only the key of
        a picture whose tiles are not cached, and the errors of ``Head.encode``.
        """
        side = asked[0].size(self._head.config)
        async with _Picture(self._head, image, self._pictures) as picture:
            for crop in crops:
                name = info.key, crop, side
                features = await self._known(context, name, *asked)
                if features is None:
                    file = pb.Image(encoded=await picture.part(crop, side))
                    encoded, features = await self._head.encode(context.in_bulk(), file, *asked)
                    self._keys[name] = encoded.key
                yield crop, features

    async def _known(
        self, context: RequestContext, name: tuple[str, Crop, int], *asked: Needs
    ) -> ImageFeatures | None:
        """Return the features of a tile whose key is known, if they are cached."""
        if key := self._keys.get(name):
            with suppress(KeyUnknown):
                return (await self._head.encode(context, pb.Image(key=key), *asked))[1]
        return None


class _Picture:
    """The pixels of one request's picture, decoded when the first part is needed."""

    def __init__(self, head: Head, image: pb.Image, turns: asyncio.Semaphore) -> None:
        self._head, self._image, self._turns = head, image, turns
        self._pixels_HW3: NDArray[np.uint8] | None = None

    async def __aenter__(self) -> "_Picture":
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._pixels_HW3 is not None:
            self._pixels_HW3 = None
            self._turns.release()

    async def part(self, crop: Crop, side: int) -> bytes:
        """Return a part as a file in the resolution of a frame of ``side`` pixels.

        The backbone would resize it to that in any case.
        """
        if self._pixels_HW3 is None:
            self._pixels_HW3 = await self._decoded()
        geometry, part_HW3 = Geometry(crop.height, crop.width, side), crop.of(self._pixels_HW3)
        return await threads.run(
            self._head.workers, "preprocess", lambda: pixels.encode_png(geometry.fit(part_HW3))
        )

    async def _decoded(self) -> NDArray[np.uint8]:
        if self._image.WhichOneof("source") == "key":
            raise KeyUnknown("tiles need the image's pixels, not only its key: send the image")
        await self._turns.acquire()
        try:
            limits = image_limits(self._head.settings)
            encoded = self._image.encoded
            return await threads.run(self._head.workers, "decode", pixels.decode, encoded, limits)
        except BaseException:
            self._turns.release()
            raise
