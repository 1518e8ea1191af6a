"""The answers as plain values: small, frozen, with numpy arrays where the wire has bytes.

Coordinates are pixels of the original image, (0, 0) its top-left corner.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from samclip.keywords import names_its_keywords

Point = tuple[float, float]  # x, y
Box = tuple[float, float, float, float]  # x_min, y_min, x_max, y_max
Points = Sequence[Point] | Point
Boxes = Sequence[Box] | Box


@names_its_keywords
@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """One object to find; points, box and mask_input may be combined.

    points: pixels of the object, or one of them. negative: pixels that are not part of it.
    mask_input: a mask got with ``encoding="logits"``, float32 h×w in the model's frame.
    text: alone, asks for every instance of it.
    """

    points: Points = ()
    negative: Points = ()
    box: Box | None = None
    mask_input: "np.ndarray | Mask | None" = None
    text: str = ""


@dataclass(frozen=True, eq=False)
class Mask:
    """One object. ``array`` is bool H×W of the original image's size, and what numpy sees here.

    A mask got with ``encoding="logits"`` holds float32 h×w logits in the model's frame instead.
    ``label`` and ``label_score`` are set where the question had labels or a text.
    """

    array: np.ndarray = field(repr=False)
    box: Box
    area: int  # pixels
    predicted_iou: float
    stability_score: float
    label: str = ""
    label_score: float = 0.0

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype=dtype, copy=copy)


@dataclass(frozen=True)
class Score:
    """How well a label fits: softmax over the labels of the question, and the plain cosine."""

    label: str
    score: float
    similarity: float


@dataclass(frozen=True, eq=False)
class Region:
    """The pixels of one label: ``score`` is its mean probability over them."""

    label: str
    score: float
    area: int  # pixels
    mask: Mask = field(repr=False)


@dataclass(frozen=True, eq=False)
class SemanticMap:
    """One label for each pixel.

    label_map: int32 H×W, the index into ``labels``; -1 is background.
    regions: one for each label that has a pixel, largest first.
    """

    label_map: np.ndarray = field(repr=False)
    labels: tuple[str, ...]
    regions: list[Region]


@dataclass(frozen=True)
class Hit:
    """An image found in a collection; ``score`` is the cosine with the question."""

    id: str
    score: float
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class ListedItem:
    """An image of a collection: its id, and the metadata that it was indexed with."""

    id: str
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Indexed:
    """How many images went into a collection, and why the others (id → message) did not.

    replaced: how many of them took the place of an image that had their id.
    """

    indexed: int
    errors: Mapping[str, str]
    replaced: int = 0


@dataclass(frozen=True)
class Collection:
    """A collection of indexed images, and the checkpoint its vectors come from.

    dtype: the precision of the image encoder that made the vectors, as in ``Model``.
    """

    name: str
    count: int
    dimension: int
    model_digest: str
    dtype: str = ""


@dataclass(frozen=True)
class ImageInfo:
    """What the service knows of an image: its key, its size in pixels, was it held already."""

    key: str
    width: int
    height: int
    cached: bool


@dataclass(frozen=True)
class Model:
    """The checkpoint that answered; ``kind`` is "vit-b", "edge" or "pair".

    dtype: the precision in which the image encoder computed: "float32", "bfloat16", "float16",
    "int8" or "int8+bfloat16", where the last two are followed by the first digits of their graph's
    digest ("int8:4caf4841"). Empty if the service does not say, or if the images of a request
    differ in it.
    """

    name: str
    digest: str
    kind: str
    dtype: str = ""
