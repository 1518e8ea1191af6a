"""``--local``: the model in this process answers the client's requests, without a service."""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np

from samclip import wire
from samclip.client import Client
from samclip.images import image_key
from samclip.transport import Session
from samclip.types import Model
from samclip.v1 import samclip_pb2 as pb


def client(checkpoint: str) -> Client:
    """Return a client whose requests this checkpoint answers. Raises ValueError."""
    made = Client()
    with _loading(checkpoint):
        made._session = LocalSession(checkpoint)
    return made


def _loading(checkpoint: str) -> AbstractContextManager[object]:
    """Say on a terminal what takes seconds, and longer the first time: graphs are compiled."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console  # it takes a moment to import

    return Console(stderr=True).status(f"loading {checkpoint} …")


def _library() -> SimpleNamespace:
    """Import the library, which the client does not need. Raises ValueError if it is missing."""
    names = {
        "core": "samclip_core",
        "image": "samclip_core.io.image",
        "masks": "samclip_core.io.masks",
        "panoptic": "samclip_core.io.panoptic",
        "types": "samclip_core.types",
        "vocabularies": "samclip_core.answers.vocabularies",
    }
    try:
        return SimpleNamespace(**{name: import_module(path) for name, path in names.items()})
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--local needs {error.name}, which is not installed: "
            "in a clone, run pip install -e '.[core]'"
        ) from error


class LocalSession(Session):
    """A session whose requests do not leave this process; threads may share it."""

    def __init__(self, checkpoint: str) -> None:
        """Load a bundled checkpoint by name, or one from its directory. Raises ValueError."""
        super().__init__(grpc, "127.0.0.1:9000", None, False, 0, False)  # never connects
        self._library = _library()
        try:
            self._clip = self._library.core.SamClip.load(checkpoint)
        except self._library.core.CheckpointError as error:
            raise ValueError(
                f"--local: {error} (write the images before --local, or --local=edge)"
            ) from error
        clip = self._clip
        self.model = Model(clip.config.name, clip.digest, clip.config.kind, clip.dtype, clip.graphs)

    async def ask(self, request: Any, images: Sequence[tuple[pb.Image, str, bytes]] = ()) -> Any:
        """Answer a request. Raises ValueError if it is invalid."""
        answers: dict[type, Callable[..., Any]] = {
            pb.ClassifyRequest: self._classify,
            pb.SegmentRequest: self._segment,
            pb.SegmentEverythingRequest: self._everything,
            pb.SegmentTextRequest: self._semantic,
            pb.ExplainRequest: self._explain,
            pb.EmbedRequest: self._embed,
            pb.EmbedTextRequest: self._embed_text,
        }
        try:
            pixels = [
                self._library.image.decode(encoded, self._clip.limits) for _, _, encoded in images
            ]
            reply = answers[type(request)](request, *pixels)
        except self._library.core.SamClipError as error:
            raise ValueError(str(error)) from error
        if images:
            (_, _, encoded), (height, width, _) = images[0], pixels[0].shape
            info = pb.ImageInfo(key=image_key(encoded), width=width, height=height)
            for part in reply.results if isinstance(request, pb.ClassifyRequest) else [reply]:
                part.image.CopyFrom(info)
        return reply

    def _classify(self, request: Any, image_HW3: np.ndarray) -> Any:
        templates, top_k = list(request.templates) or None, request.top_k or None
        labels = list(request.labels)
        if request.areas:
            areas = [self._library.core.Area(box=_box(area.box)) for area in request.areas]
            ranked = self._clip.classify_areas(image_HW3, areas, labels, templates, top_k)
        else:
            ranked = [self._clip.classify(image_HW3, labels, templates, top_k)]
        return pb.ClassifyResponse(
            results=[
                pb.ClassifyResult(scores=[pb.Score(**vars(score)) for score in scores])
                for scores in ranked
            ]
        )

    def _segment(self, request: Any, image_HW3: np.ndarray) -> Any:
        features = self._clip.encode(image_HW3)
        texts = [self._text_prompt(prompt) for prompt in request.prompts if prompt.text]
        least = request.min_score if request.HasField("min_score") else None
        named = iter(self._clip.find(features, texts, least) if texts else ())
        results = []
        for prompt in request.prompts:
            if prompt.text:
                masks = [self._everything_mask(mask) for mask in next(named)]
            else:
                (found,) = self._clip.segment(features, [self._prompt(prompt)], request.multimask)
                rows = zip(found.masks_MHW, found.predicted_iou_M, found.stability_M, strict=True)
                masks = [self._mask(*row) for row in rows]
            results.append(pb.PromptResult(masks=masks))
        return pb.SegmentResponse(results=results)

    def _prompt(self, prompt: Any) -> Any:
        return self._library.core.Prompt(
            points=tuple((point.x, point.y) for point in prompt.points),
            negative=tuple(point.negative for point in prompt.points),
            box=_box(prompt.box) if prompt.HasField("box") else None,
        )

    def _text_prompt(self, prompt: Any) -> Any:
        placed = prompt.points or prompt.HasField("box")
        where = self._prompt(prompt) if placed else None
        return self._library.types.TextPrompt(prompt.text, tuple(prompt.not_texts), where)

    def _everything(self, request: Any, image_HW3: np.ndarray) -> Any:
        labels, vocabulary = list(request.labels), request.vocabulary
        least = request.min_label_score if request.HasField("min_label_score") else None
        found = self._clip.segment_everything(
            image_HW3,
            request.points_per_side or None,
            labels,
            vocabulary=vocabulary,
            min_label_score=least,
            crop_layers=request.crop_layers,
        )
        if request.encoding != pb.PANOPTIC:
            masks = [self._everything_mask(mask) for mask in found]
            return pb.SegmentEverythingResponse(masks=masks)
        names = list(self._library.vocabularies.labels_or_names(labels, vocabulary))
        height, width, _ = image_HW3.shape
        picture = self._library.panoptic.paint(found, height, width)
        segments = [
            pb.PanopticSegment(
                id=segment.id,
                category_id=names.index(label) + 1 if label else 0,
                area=segment.area,
                bbox=segment.bbox,
                label=label,
            )
            for segment in picture.segments
            for label in [found[segment.index].label]
        ]
        panoptic = pb.Panoptic(png=picture.png, segments_info=segments)
        return pb.SegmentEverythingResponse(panoptic=panoptic)

    def _semantic(self, request: Any, image_HW3: np.ndarray) -> Any:
        labels = list(request.labels)
        found = self._clip.segment_text(image_HW3, labels, request.background, request.refine)
        regions = [
            pb.Region(
                label=region.label,
                score=region.score,
                area=region.area,
                mask=self._mask(region.mask_HW, 0, 0, region.label, region.score),
            )
            for region in found.regions
        ]
        png = self._library.masks.encode_label_map(found.label_map_HW, len(labels))
        return pb.SegmentTextResponse(label_map_png=png, regions=regions)

    def _explain(self, request: Any, image_HW3: np.ndarray) -> Any:
        found = self._clip.explain(image_HW3, request.label, list(request.others))
        png = self._library.masks.write_png(found.levels_HW)
        return pb.ExplainResponse(heat_png=png, low=found.low, high=found.high)

    def _embed(self, request: Any, image_HW3: np.ndarray) -> Any:
        tensor = wire.array_to_tensor(self._clip.embed_image(image_HW3))
        tensor.name = "CLIP_POOLED"
        return pb.EmbedResponse(tensors=[tensor])

    def _embed_text(self, request: Any) -> Any:
        texts_TD = self._clip.embed_text(list(request.texts))
        return pb.EmbedTextResponse(tensor=wire.array_to_tensor(texts_TD))

    def _everything_mask(self, found: Any) -> pb.Mask:
        scores = found.predicted_iou, found.stability, found.label, found.label_score
        return self._mask(found.mask_HW, *scores)

    def _mask(
        self, mask_HW: Any, iou: float, stability: float, label: str = "", score: float = 0
    ) -> pb.Mask:
        x_min, y_min, x_max, y_max = self._library.masks.mask_box(mask_HW)
        height, width = mask_HW.shape
        counts = self._library.masks.encode_rle(mask_HW)
        return pb.Mask(
            rle=pb.CocoRle(height=height, width=width, counts=counts),
            box=pb.Box(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max),
            area=int(np.count_nonzero(mask_HW)),
            predicted_iou=iou,
            stability_score=stability,
            label=label,
            label_score=score,
        )


def _box(box: Any) -> tuple[float, float, float, float]:
    return box.x_min, box.y_min, box.x_max, box.y_max
