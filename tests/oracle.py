"""Stand-ins for a model whose answers the tests know in advance."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import numpy as np

from samclip_core.answers.semantic import SegmentText
from samclip_core.answers.steps import run
from samclip_core.answers.zero_shot import class_embeddings
from samclip_core.config import EDGE
from samclip_core.encoder import Prepared
from samclip_core.geometry import Geometry
from samclip_core.io.image import ImageLimits, decode
from samclip_core.types import ImageFeatures, Prompt, SemanticMap
from tests.fakes import FakeSamHead
from tests.photographs import COLOURS, Drawing, jpg


@dataclass(frozen=True)
class Seen:
    """The oracle's features of a picture: the drawing itself."""

    drawing: Drawing

    @property
    def geometry(self) -> Geometry:
        return Geometry(*self.drawing.labels_HW.shape, EDGE.image_size)


class Oracle:
    """A model that knows the drawings in advance and returns configured answers."""

    config = EDGE
    limits = ImageLimits()
    engine = SimpleNamespace(device="cpu")

    def __init__(self, drawings: Sequence[Drawing] = ()) -> None:
        self.drawings = {jpg(drawing.image_HW3): drawing for drawing in drawings}
        self.images: dict[bytes, np.ndarray] = {}
        self.texts: dict[str, np.ndarray] = {}

    def encode(self, image: bytes | np.ndarray, size: int | None = None) -> Seen | bytes:
        known = image if isinstance(image, bytes) else image.tobytes()
        return Seen(self.drawings[known]) if known in self.drawings else known

    def prepare(self, image: bytes | np.ndarray, size: int | None = None) -> bytes | np.ndarray:
        return image

    def encode_batch(self, batch: Sequence[bytes | np.ndarray]) -> list[Seen | bytes]:
        return [self.encode(image) for image in batch]

    @property
    def sam_head(self) -> "Oracle":
        return self

    def decode_batch(
        self, requests: Sequence[tuple[Seen, Sequence[Prompt]]], multimask: bool
    ) -> list[list[SimpleNamespace]]:
        """Return what ``segment`` does, before it is enlarged."""
        return [
            [SimpleNamespace(enlarge_all=partial(copy, answer)) for answer in answers]
            for answers in (self.segment(*request, multimask) for request in requests)
        ]

    def segment(
        self, seen: Seen, prompts: Sequence[Prompt], multimask: bool
    ) -> list[SimpleNamespace]:
        """Return the filled box, or, for a point, masks of everything, nothing and its object."""
        answers = []
        labels_HW = seen.drawing.labels_HW
        for prompt in prompts:
            mask_HW = np.zeros(labels_HW.shape, np.bool_)
            if multimask:
                x, y = (int(value) for value in prompt.points[0])
                masks = [np.ones_like(mask_HW), mask_HW, labels_HW == labels_HW[y, x]]
            else:
                x_min, y_min, x_max, y_max = (int(value) for value in prompt.box)
                mask_HW[y_min:y_max, x_min:x_max] = True
                masks = [mask_HW]
            trusted_M = np.linspace(0.9, 0.5, len(masks))
            answers.append(SimpleNamespace(masks_MHW=np.stack(masks), predicted_iou_M=trusted_M))
        return answers

    def segment_text(
        self, seen: Seen, labels: list[str], background: bool, refine: bool
    ) -> SimpleNamespace:
        """Return the correct label map; with ``refine``, the first label everywhere.

        Pixels outside the drawn shapes are background, or the first label without ``background``.
        """
        labels_HW = seen.drawing.labels_HW.astype(int)
        right_HW = labels_HW - 1 if background else np.maximum(labels_HW - 1, 0)
        return SimpleNamespace(label_map_HW=np.zeros_like(right_HW) if refine else right_HW)

    def embed_image(self, encoded: bytes) -> np.ndarray:
        return self.images[encoded]

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self.texts[text] for text in texts])

    def embed_labels(self, labels: Sequence[str]) -> np.ndarray:
        return class_embeddings(self.embed_text, labels, self.config.templates)


class ColourBlind:
    """A model whose only feature is each cell's mean colour; its labels are drawing colours."""

    CELL = 4
    engine, limits = Oracle.engine, Oracle.limits

    def __init__(self, image_size: int) -> None:
        self.config = replace(EDGE, image_size=image_size)

    def prepare(self, image: bytes | np.ndarray, size: int) -> Prepared:
        image_HW3 = decode(image, self.limits) if isinstance(image, bytes) else image
        geometry = Geometry(*image_HW3.shape[:2], size)
        return Prepared(geometry.resize(image_HW3), geometry)

    def encode_batch(self, batch: Sequence[Prepared]) -> list[ImageFeatures]:
        found = []
        for frame in batch:
            pixels_3SS = frame.pixels_3SS.astype(np.float32) / 127.5 - 1
            side = frame.geometry.size // self.CELL
            cells = pixels_3SS.reshape(3, side, self.CELL, side, self.CELL)
            found.append(ImageFeatures(frame.geometry, clip_dense_Dhw=cells.mean(axis=(2, 4))))
        return found

    def segment_text(
        self, features: ImageFeatures, labels: list[str], background: bool, refine: bool
    ) -> SemanticMap:
        colours_L3 = np.array(list(COLOURS.values())) / 127.5 - 1
        steps = SegmentText(labels).of_dense_map(features, colours_L3, 20.0)
        return run(steps, FakeSamHead(np.zeros((1, 1))))
