"""Programs of answers in a service: what they ask for comes from cache, backbone and queues."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.steps import (
    Decode,
    Done,
    Effect,
    Encode,
    Round,
    Steps,
    Texts,
    advance,
    answer,
    until_asked,
)
from samclip_core.errors import KeyUnknown, SamClipError
from samclip_core.geometry import Geometry
from samclip_core.io import image as pixels
from samclip_core.types import ImageFeatures, MaskSet
from services.batching.priority import Priority
from services.batching.threads import Places, Threads
from services.heads.head import HeadService, TileName
from services.request.context import RequestContext
from services.request.limits import image_limits

T = TypeVar("T")
Step = Effect | Done[Any]
STAGE = "mask_decode"
STALLED_S = 1.0
"""A caller who takes longer to read a round leaves memory for tiles to others until then."""
Work = Callable[[Steps[Step], float], Awaitable[Step]]
"""Runs steps that ask for masks alone, in threads, with turns for others.

It also takes when the work began of which they are a later part, or 0."""


def in_thread(
    head: HeadService,
    thread: Threads,
    places: Places,
    priority: Priority,
    encode: Callable[[Any], Awaitable[Any]],
) -> Work:
    """Return work in a thread, with the SAM head's answers from there.

    It has a place until its result, which takes much memory, is encoded.
    """

    async def ask(question: Decode) -> list[MaskSet]:
        return await thread.run(priority, STAGE, answer, head.sam_head, question)

    async def held(steps: Steps[Step], begun: float) -> Step:
        async with places.held(priority, begun):
            step = await thread.run_steps(priority, STAGE, steps, begun, ask)
            return Done(await encode(step.result)) if isinstance(step, Done) else step

    return held


class Runner(Generic[T]):
    """Runs the program of a request about an image: ``begin``, then ``result`` or ``rounds``.

    ``info`` and ``features`` are those of the image, once the program has begun.
    """

    info: pb.ImageInfo
    features: ImageFeatures
    _result: T

    def __init__(
        self,
        head: HeadService,
        context: RequestContext,
        image: pb.Image,
        program: Steps[T],
        work: Work,
        aside: bool = False,
    ) -> None:
        """Run on the event loop until the first pause; ``aside``: only by ``work``."""
        self._head, self._context, self._image = head, context, image
        self._program, self._work, self._aside = program, work, aside
        self._begun = 0.0
        self._files, self._place = dict[TileName, bytes](), AsyncExitStack()

    async def begin(self, *others: Encode) -> None:
        """Encode the image, in one call with what ``others`` need of it; no other work is done.

        Raises the errors of the program's first checks, and of ``HeadService.encode``.
        """
        step = await self._next(None)
        assert isinstance(step, Encode)
        asked = step, *others
        self.info, self.features = await self._head.encode(self._context, self._image, *asked)

    async def result(self) -> T:
        """Return the result of the program. Raises its errors, and those of what it asks for."""
        async with aclosing(self.rounds()) as rounds:
            async for _ in rounds:
                pass
        return self._result

    async def rounds(self) -> AsyncGenerator[Round]:
        """Yield the rounds of the program, to its end."""
        answer: Any = self.features
        try:
            while not isinstance(step := await self._next(answer), Done):
                answer = None
                if isinstance(step, Round):
                    stalled = asyncio.get_running_loop().call_later(STALLED_S, self._give_back)
                    try:
                        yield step
                    finally:
                        stalled.cancel()
                    continue
                try:
                    answer = await self._ask(step)
                except SamClipError as error:  # the program knows what the error is about
                    answer = error
            self._result = step.result
        finally:
            await self._place.aclose()
            del self._work  # which may know this runner: a cycle would keep the features in memory

    async def _next(self, answer: Any) -> Step:
        """Run the program until it asks for more than masks."""
        if not self._aside:
            step = advance(self._program, answer)
            if step is not None:
                return step
            self._aside, answer = True, None
        begun, self._begun = self._begun, self._begun or monotonic()
        return await self._work(until_asked(self._program, answer), begun)

    async def _ask(self, step: Effect) -> Any:
        head, context = self._head, self._context
        if isinstance(step, Texts):
            templates = head.config.templates if step.templates is None else step.templates
            return await head.backbone.class_embeddings(context, step.labels, templates)
        assert isinstance(step, Encode)
        if step.crops:
            return await self._tile(step)
        return (await head.encode(context, step.image, step))[1]

    async def _tile(self, step: Encode) -> ImageFeatures:
        """Return the features of a tile, which the backbone encodes as a picture of its own.

        Raises KeyUnknown if the request has only the key of a picture whose tiles are not cached.
        """
        head, key = self._head, self._context.caller.cache_key(self.info.key)
        name = key, step.crops[0], step.side
        features = await self._known(name, step)
        if features is None:
            if name not in self._files:
                if not self._files:
                    held = head.tiled.held(self._context.priority, self._begun)
                    await self._place.enter_async_context(held)
                # The later ones as well, lest the picture be decoded for each that is missing.
                self._files = await self._cut([(key, crop, step.side) for crop in step.crops])
            sent = pb.Image(encoded=self._files[name])
            encoded, features = await head.encode(self._context.in_bulk(), sent, step)
            head.tile_keys[name] = encoded.key
        self._files.pop(name, None)
        if not self._files:
            await self._place.aclose()
        return features

    def _give_back(self) -> None:
        """Give files of tiles, and the place that they have, back; later tiles are cut again."""
        self._files = {}
        self._closing = asyncio.create_task(self._place.aclose())

    async def _known(self, name: TileName, step: Encode) -> ImageFeatures | None:
        """Return the features of a tile whose key is known, if they are cached."""
        if key := self._head.tile_keys.get(name):
            with suppress(KeyUnknown):
                return (await self._head.encode(self._context, pb.Image(key=key), step))[1]
        return None

    async def _cut(self, names: Sequence[TileName]) -> dict[TileName, bytes]:
        """Return tiles as files in the resolution of their frame.

        The backbone would resize them to that in any case.
        """
        if self._image.WhichOneof("source") == "key":
            raise KeyUnknown("tiles need the image's pixels, not only its key: send the image")
        workers, priority = self._head.workers, self._context.priority
        part = partial(_part, self.features.geometry)
        limits = image_limits(self._head.settings)
        decode = partial(pixels.decode, self._image.encoded, limits)
        async with self._head.pictures.held(priority):
            image_HW3 = await workers.run(priority, "decode", decode)
            return {
                name: await workers.run(priority, "preprocess", part, image_HW3, name)
                for name in names
            }


def _part(picture: Geometry, image_HW3: NDArray[np.uint8], name: TileName) -> bytes:
    _, crop, side = name
    frame = replace(picture.of(crop), size=side)
    return pixels.encode_png(frame.fit(crop.of(image_HW3)))
