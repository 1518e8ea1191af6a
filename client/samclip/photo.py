"""A photograph and the questions about it, in two kinds that share every line but the waiting.

``AsyncPhoto`` is written out; ``Photo`` has the same methods over a session whose calls block.
"""

import functools
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from samclip import wire
from samclip.images import ImageSource, encode_image, image_key
from samclip.keywords import names_its_keywords
from samclip.session import Session
from samclip.types import Box, Boxes, ImageInfo, Mask, Points, Prompt, Score, SemanticMap
from samclip.v1 import samclip_pb2 as pb

P = ParamSpec("P")
T = TypeVar("T")


def blocking(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], T]:
    """The method for a session whose calls block: nothing is left to wait for in its coroutine."""

    @functools.wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            method(self, *args, **kwargs).send(None)
        except StopIteration as done:
            return done.value
        raise RuntimeError("a blocking call waited: the session is not a blocking one")

    return call


class _Photo:
    """An image of the caller's: its key, its file, and what the service last said of it."""

    def __init__(self, session: Session, source: ImageSource = b"", *, key: str = "") -> None:
        self._session = session
        self.encoded = b"" if key else encode_image(source)
        self.key = key or image_key(self.encoded)
        self.info: ImageInfo | None = None

    def __repr__(self) -> str:
        size = f", {self.info.width}×{self.info.height}" if self.info else ""
        return f"{type(self).__name__}({self.key[:12]}…, {len(self.encoded):,} bytes{size})"

    async def _ask(self, request: Any) -> Any:
        reply = await self._session.ask(request, [(request.image, self.key, self.encoded)])
        self.info = wire.image_info(reply.image)
        return reply

    async def _segment(
        self, prompts: Sequence[Prompt], multimask: bool, encoding: str
    ) -> list[list[Mask]]:
        request = pb.SegmentRequest(
            prompts=[wire.prompt(prompt) for prompt in prompts],
            multimask=multimask,
            encoding=encoding.upper(),
        )
        reply = await self._ask(request)
        return [[wire.mask(mask, reply.image) for mask in r.masks] for r in reply.results]

    async def _features(self, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        reply = await self._ask(
            pb.EmbedRequest(outputs=[output.upper() for output in outputs], inline=True)
        )
        return {tensor.name.lower(): wire.tensor_to_array(tensor) for tensor in reply.tensors}


@names_its_keywords
class AsyncPhoto(_Photo):
    """A photograph, and the questions about it; made by ``AsyncClient.image``."""

    async def classify(
        self, labels: Sequence[str], *, templates: Sequence[str] = (), top_k: int = 0
    ) -> list[Score]:
        """The labels with their scores, best first.

        templates: texts like "a photo of a {}."; none means the checkpoint's own.
        top_k: how many of the labels; 0 means all.
        """
        request = pb.ClassifyRequest(
            labels=wire.texts(labels), templates=wire.texts(templates), top_k=top_k
        )
        slot = request.images.add()
        reply = await self._session.ask(request, [(slot, self.key, self.encoded)])
        self.info = wire.image_info(reply.results[0].image)
        return wire.scores(reply.results[0].scores)

    async def segment(  # noqa: PLR0913 - each is a word of the public interface
        self,
        points: Points = (),
        *,
        negative: Points = (),
        box: Box | None = None,
        boxes: Boxes = (),
        mask_input: np.ndarray | Mask | None = None,
        text: str = "",
        multimask: bool = False,
        encoding: str = "rle",
    ) -> list[Mask]:
        """One object (points, at most one box, an earlier mask), several (boxes), all of a text.

        points, negative: (x, y) pixels that belong to the object, that do not; one or several.
        box, boxes: (x_min, y_min, x_max, y_max); more than one asks for one object each.
        mask_input: a mask got with ``encoding="logits"``.
        multimask: three masks for each object, best first, instead of one.
        encoding: how masks travel: "rle", "png", "polygons", "packed_bits"; "logits" for reuse.
        """
        if box is not None and len(boxes):
            raise ValueError("segment got both box and boxes: pass one of them")
        wanted = boxes if box is None else box
        prompts = wire.prompts(points, negative, wanted, mask_input, text)
        results = await self._segment(prompts, multimask, encoding)
        return [mask for masks in results for mask in masks]

    async def segment_prompts(
        self, prompts: Sequence[Prompt], *, multimask: bool = False, encoding: str = "rle"
    ) -> list[list[Mask]]:
        """The masks of each prompt, in order, best first."""
        return await self._segment(prompts, multimask, encoding)

    async def everything(
        self, labels: Sequence[str] = (), *, points_per_side: int = 0, encoding: str = "rle"
    ) -> list[Mask]:
        """Every object that a grid of clicks finds, largest first.

        labels: name each mask with the likeliest of these.
        points_per_side: of the grid; 0 means the checkpoint's own choice.
        """
        reply = await self._ask(
            pb.SegmentEverythingRequest(
                labels=wire.texts(labels),
                points_per_side=points_per_side,
                encoding=encoding.upper(),
            )
        )
        return [wire.mask(mask, reply.image) for mask in reply.masks]

    async def semantic(
        self,
        labels: Sequence[str],
        *,
        refine: bool = False,
        background: bool = False,
        encoding: str = "rle",
    ) -> SemanticMap:
        """Which pixel is what.

        refine: both heads, the dense CLIP map and then the SAM head.
        background: pixels that no label wins clearly become background.
        """
        labels = wire.texts(labels)
        request = pb.SegmentTextRequest(
            labels=labels, refine=refine, background=background, encoding=encoding.upper()
        )
        return wire.semantic_map(await self._ask(request), labels)

    async def embed(self) -> np.ndarray:
        """Float32 (D,) of length 1, in the space of ``embed_text``."""
        features = await self._features(["clip_pooled"])
        pooled = features["clip_pooled"].astype(np.float32)
        return pooled / np.linalg.norm(pooled)  # float16 leaves the length a little off

    async def features(self, *outputs: str) -> dict[str, np.ndarray]:
        """The embeddings by name: "sam" D×h×w, "clip_dense" D×h×w, "clip_pooled" D; none: all."""
        return await self._features(outputs)


class Photo(_Photo):
    """A photograph, and the questions about it; made by ``Client.image``."""

    classify = blocking(AsyncPhoto.classify)
    segment = blocking(AsyncPhoto.segment)
    segment_prompts = blocking(AsyncPhoto.segment_prompts)
    everything = blocking(AsyncPhoto.everything)
    semantic = blocking(AsyncPhoto.semantic)
    embed = blocking(AsyncPhoto.embed)
    features = blocking(AsyncPhoto.features)
