"""The questions about a photograph, asynchronous and blocking.

``AsyncPhoto`` has the code; ``Photo`` runs the same methods over a session whose calls block.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import numpy as np

from samclip import heads, wire
from samclip.masks import Masks
from samclip.photo_file import PhotoFile
from samclip.transport import blocking, blocking_stream
from samclip.types import (
    Box,
    Boxes,
    EverythingUpdate,
    Example,
    HeatMap,
    ImageInfo,
    Mask,
    Panoptic,
    Points,
    Prompt,
    Score,
    SemanticMap,
    Tiles,
)
from samclip.v1 import samclip_pb2 as pb


class AsyncPhoto(PhotoFile):
    """A photograph and the requests about it, made by ``AsyncClient.image``.

    The examples are of ``Photo``; here, each request is awaited.
    """

    async def classify(
        self, labels: Sequence[str], *, templates: Sequence[str] = (), top_k: int = 0
    ) -> list[Score]:
        """Return the labels with their scores, best first.

        templates: texts such as "a photo of a {}."; empty means the checkpoint's own.
        top_k: number of labels; 0 means all.

        >>> [score.label for score in photo.classify(["a cat", "a dog", "a cup"], top_k=1)]
        ['a cat']
        """
        (scores,) = await self._classify(labels, templates, top_k)
        return self._keep(scores)

    async def classify_areas(
        self,
        labels: Sequence[str],
        *,
        boxes: Boxes = (),
        masks: Sequence[np.ndarray | Mask] = (),
        templates: Sequence[str] = (),
        top_k: int = 0,
    ) -> list[list[Score]]:
        """Classify parts of the image: return the scores per box, then per mask, best first.

        boxes: (x_min, y_min, x_max, y_max); one or several.
        masks: bool H×W in the image's size, or masks of earlier replies.
        templates, top_k: as for ``classify``.

        >>> (scores,) = photo.classify_areas(["an eye", "a wall"], boxes=[(180, 60, 250, 120)])
        >>> scores[0].label
        'an eye'
        """
        areas = wire.areas(boxes, masks)
        if not areas:
            raise ValueError("classify_areas got no areas: pass boxes or masks")
        return await self._classify(labels, templates, top_k, areas)

    async def segment(  # noqa: PLR0913 - the public interface
        self,
        points: Points = (),
        *,
        negative: Points = (),
        box: Box | None = None,
        boxes: Boxes = (),
        mask_input: np.ndarray | Mask | None = None,
        text: str | Sequence[str] = "",
        not_texts: Sequence[str] = (),
        like: Example | Mask | Sequence[Example | Mask] = (),
        mask: np.ndarray | Mask | None = None,
        min_score: float | None = None,
        exclusive: bool = False,
        tiles: Tiles = 0,
        multimask: bool = False,
        encoding: str = "rle",
    ) -> Masks:
        """Segment one object (points, a box, a rough mask), one per box, or all like a text.

        points, negative: (x, y) pixels inside and outside the object; one or several.
        box, boxes: (x_min, y_min, x_max, y_max); several boxes give one object each.
        mask_input: a mask from a reply with ``encoding="logits"``.
        text: every object it describes, or none; several are judged each alone, so that their masks
        may overlap. With points or a box, only objects that contain the points or are in the box.
        not_texts: leave out objects that one of these describes better.
        like: every object like one of these examples, or none; a mask is one in this image. With a
        text, those that it describes; points and a box as with a text.
        mask: the object that this rough mask marks: bool H×W in the image's size, from any source,
        or a mask of an earlier reply. Alone, or with points and a box.
        min_score: leave out objects with a lower label_score, 0 to 1; None: the default.
        exclusive: each pixel belongs to the text with the best label_score there; masks that lose
        half of theirs are left out.
        tiles: for text and like in a large image: also search so many overlapping tiles along the
        longer side, each encoded on its own; "auto": as many as the image needs.
        multimask: three masks per object, best first, instead of one.
        encoding: wire format: "rle", "png", "polygons"; "logits" for mask_input.

        >>> (mask,) = photo.segment(box=(15, 0, 385, 299))
        >>> {mask.label for mask in photo.segment(text=["a cat", "a unicorn"])}
        {'a cat'}
        >>> eye = samclip.Example(box=(180, 60, 250, 120))
        >>> masks = photo.segment(like=eye)
        >>> rough = np.zeros((300, 451), bool)
        >>> rough[20:280, 40:360] = True
        >>> (cat,) = photo.segment(mask=rough)
        """
        if box is not None and len(boxes):
            raise ValueError("segment got both box and boxes: pass one of them")
        wanted = boxes if box is None else box
        asked = wire.texts(text) if text else []
        given = Prompt(
            points=points,
            negative=negative,
            mask_input=mask_input,
            not_texts=not_texts,
            examples=wire.examples(like),
            mask=mask,
        )
        prompts = wire.prompts(given, wanted, asked)
        results = await AsyncPhoto.segment_prompts(  # self.segment_prompts of Photo is blocking
            self,
            prompts,
            multimask=multimask,
            encoding=encoding,
            min_score=min_score,
            exclusive=exclusive,
            tiles=tiles,
        )
        return Masks(mask for masks in results for mask in masks)

    async def segment_prompts(
        self,
        prompts: Sequence[Prompt],
        *,
        multimask: bool = False,
        encoding: str = "rle",
        min_score: float | None = None,
        exclusive: bool = False,
        tiles: Tiles = 0,
    ) -> list[Masks]:
        """Return the masks of each prompt, in order of the prompts, best mask first.

        min_score, exclusive, tiles: for texts and examples, as in ``segment``.
        """
        request = wire.request(
            pb.SegmentRequest,
            prompts=[wire.prompt(prompt) for prompt in prompts],
            multimask=multimask,
            encoding=wire.choice(pb.MaskEncoding, "encoding", encoding),
            min_score=min_score,
            exclusive=exclusive,
            tiles=wire.tiles(tiles),
        )
        others = [
            (slot.image, photo.key, photo.encoded)
            for message, prompt in zip(request.prompts, prompts, strict=True)
            for slot, example in zip(message.examples, prompt.examples, strict=True)
            for photo in [self._example_of(example)]
        ]
        reply = await self._ask(request, others)
        found = wire.results(reply, self.encoded)
        self._keep(Masks(mask for masks in found for mask in masks))
        return found

    async def everything(
        self,
        labels: Sequence[str] = (),
        *,
        vocabulary: str = "",
        min_label_score: float | None = None,
        points_per_side: int = 0,
        tiles: Tiles = 0,
        encoding: str = "rle",
    ) -> Masks:
        """Segment every object that clicks over the image find, largest first.

        labels: label each mask with the most likely of these; or vocabulary: "coco" or "lvis".
        min_label_score: a label with a smaller share, 0 to 1, is left out; None: the default.
        points_per_side: size of the finest grid of clicks; 0 means the checkpoint's default.
        tiles: also search tiles of the image, as in ``segment``.

        >>> masks = photo.everything(points_per_side=8)
        >>> masks[0].area >= masks[-1].area
        True
        """
        if str(encoding).lower() == "panoptic":
            raise ValueError("everything returns single masks: call panoptic for one picture")
        request = wire.everything(
            labels, vocabulary, min_label_score, points_per_side, tiles, encoding
        )
        reply = await self._ask(request)
        return self._keep(wire.masks(reply.masks, reply.image, self.encoded))

    async def stream_everything(
        self,
        labels: Sequence[str] = (),
        *,
        vocabulary: str = "",
        min_label_score: float | None = None,
        points_per_side: int = 0,
        tiles: Tiles = 0,
        encoding: str = "rle",
    ) -> AsyncGenerator[EverythingUpdate, None]:
        """Yield masks as they are found; together they are those of ``everything``."""
        request = wire.everything(
            labels, vocabulary, min_label_score, points_per_side, tiles, encoding
        )
        images = [(request.image, self.key, self.encoded)]
        shown: dict[int, Mask] = {}
        async for message in self._session.stream(request, images, "StreamEverything"):
            if message.HasField("image"):
                image, self.info = message.image, wire.like(ImageInfo, message.image)
            found = {each.id: wire.mask(each.mask, image, self.encoded) for each in message.found}
            replaced = set(message.withdrawn)
            shown = {id: mask for id, mask in (shown | found).items() if id not in replaced}
            self._keep(Masks(shown.values()))
            yield EverythingUpdate(found, list(message.withdrawn), message.progress)

    async def panoptic(
        self,
        labels: Sequence[str] = (),
        *,
        vocabulary: str = "",
        min_label_score: float | None = None,
        points_per_side: int = 0,
        tiles: Tiles = 0,
    ) -> Panoptic:
        """Segment every object as one picture in COCO's panoptic format; see ``everything``."""
        request = wire.everything(
            labels, vocabulary, min_label_score, points_per_side, tiles, "panoptic"
        )
        return self._keep(wire.panoptic((await self._ask(request)).panoptic))

    async def semantic(
        self,
        labels: Sequence[str],
        *,
        refine: bool = False,
        background: bool = False,
        tiles: Tiles = 0,
        encoding: str = "rle",
    ) -> SemanticMap:
        """Assign one of the labels to each pixel.

        refine: use both heads, the dense CLIP map and then the SAM head.
        background: pixels without a clear best label become background.
        tiles: the maps of the image's tiles as one, without refine; see ``segment``.

        >>> found = photo.semantic(["cat", "blanket"], refine=True)
        >>> found.label_map.shape, found.labels[found.label_map[60, 200]]
        ((300, 451), 'cat')
        """
        labels = wire.texts(labels)
        form = wire.choice(pb.MaskEncoding, "encoding", encoding)
        request = wire.request(
            pb.SegmentTextRequest,
            labels=labels,
            refine=refine,
            background=background,
            tiles=wire.tiles(tiles),
            encoding=form,
        )
        return self._keep(wire.semantic_map(await self._ask(request), labels, self.encoded))

    async def explain(self, label: str, others: Sequence[str] = ()) -> HeatMap:
        """Return where the model sees a label: its cosine similarity at each pixel.

        others: return the label's share among these instead, a softmax.

        >>> heat = photo.explain("cat")
        >>> heat.values.shape, bool(heat.values.max() <= 1)
        ((300, 451), True)
        """
        reply = await self._ask(
            wire.request(pb.ExplainRequest, label=label, others=wire.texts(others))
        )
        return self._keep(wire.heat_map(reply, label))

    async def ask(
        self, head: str, /, *, encoding: str = "rle", **parameters: Any
    ) -> dict[str, Any]:
        """Return what a head of one's own answers, of those in ``Client.heads``.

        parameters: the head's own. encoding: of masks, as in ``segment``. In the answer, masks are
        ``Mask``, arrays are numpy's and pictures Pillow's: ``photo.ask("ripeness", at_least=0.7)``
        may return {"ripe": 0.93}.
        """
        reply = await self._ask(heads.request(head, parameters, encoding))
        return self._keep(heads.answer(reply, self.encoded))

    async def embed(self) -> np.ndarray:
        """Return float32 (D,) of unit length, in the space of ``embed_text``.

        >>> photo.embed().shape
        (384,)
        """
        features = await AsyncPhoto.features(self, "clip_pooled")
        pooled = features["clip_pooled"].astype(np.float32)
        return pooled / np.linalg.norm(pooled)  # not exactly 1 in float16

    async def features(self, *outputs: str, inline: bool = True) -> dict[str, np.ndarray]:
        """Return embeddings: "sam" D×h×w, "clip_dense" D×h×w, "clip_pooled" D; all by default.

        "regions", only on demand, are the bytes of an .npz file of everything's masks and vectors.
        Without ``inline`` the service computes and caches them, and nothing is returned.
        """
        names = [wire.choice(pb.Output, "output", output) for output in outputs]
        reply = await self._ask(wire.request(pb.EmbedRequest, outputs=names, inline=inline))
        found = reply.tensors if inline else ()
        return {tensor.name.lower(): wire.tensor_to_array(tensor) for tensor in found}


class Photo(PhotoFile):
    """A photograph and the requests about it, made by ``Client.image``."""

    classify = blocking(AsyncPhoto.classify)
    classify_areas = blocking(AsyncPhoto.classify_areas)
    segment = blocking(AsyncPhoto.segment)
    segment_prompts = blocking(AsyncPhoto.segment_prompts)
    everything = blocking(AsyncPhoto.everything)
    stream_everything = blocking_stream(AsyncPhoto.stream_everything)
    panoptic = blocking(AsyncPhoto.panoptic)
    semantic = blocking(AsyncPhoto.semantic)
    explain = blocking(AsyncPhoto.explain)
    ask = blocking(AsyncPhoto.ask)
    embed = blocking(AsyncPhoto.embed)
    features = blocking(AsyncPhoto.features)
