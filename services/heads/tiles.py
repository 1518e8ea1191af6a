"""The tiles of a large picture, each encoded by the backbone as a picture of its own."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from functools import partial

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
from services.batching.threads import Places
from services.heads.head import Head
from services.request.context import RequestContext
from services.request.limits import image_limits

PICTURES = 2
"""Pictures whose pixels a process holds at once, some 200 MB each, until their tiles are cut."""
KEYS = 16_384
"""Tiles whose keys are remembered: so many need no pixels for a second question."""
Name = tuple[str, Crop, int]
"""A tile: the picture's cache key, the rectangle, and the side of the frame in pixels."""


class Tiler:
    """Encodes the tiles of pictures for one head."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._pictures = Places("pictures", PICTURES)
        self._keys = LRUCache[Name, str](KEYS)

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
        key, files = context.caller.cache_key(info.key), dict[Name, bytes]()
        names = [(key, crop, side) for crop in crops]
        for index, name in enumerate(names):
            features = await self._known(context, name, *asked)
            if features is None:
                # The later ones as well, lest the picture be decoded for each that is missing.
                files = files or await self._cut(context, image, names[index:])
                sent = pb.Image(encoded=files[name])
                encoded, features = await self._head.encode(context.in_bulk(), sent, *asked)
                self._keys[name] = encoded.key
            files.pop(name, None)
            yield name[1], features

    async def _cut(
        self, context: RequestContext, image: pb.Image, names: Sequence[Name]
    ) -> dict[Name, bytes]:
        """Return tiles as files in the resolution of their frame.

        The backbone would resize them to that in any case.
        """
        if image.WhichOneof("source") == "key":
            raise KeyUnknown("tiles need the image's pixels, not only its key: send the image")
        workers, priority = self._head.workers, context.priority
        decode = partial(pixels.decode, image.encoded, image_limits(self._head.settings))
        async with self._pictures.held(priority):
            image_HW3 = await workers.run(priority, "decode", decode)
            return {
                name: await workers.run(priority, "preprocess", _part, image_HW3, name)
                for name in names
            }

    async def _known(
        self, context: RequestContext, name: Name, *asked: Needs
    ) -> ImageFeatures | None:
        """Return the features of a tile whose key is known, if they are cached."""
        if key := self._keys.get(name):
            with suppress(KeyUnknown):
                return (await self._head.encode(context, pb.Image(key=key), *asked))[1]
        return None


def _part(image_HW3: NDArray[np.uint8], name: Name) -> bytes:
    _, crop, side = name
    return pixels.encode_png(Geometry(crop.height, crop.width, side).fit(crop.of(image_HW3)))
