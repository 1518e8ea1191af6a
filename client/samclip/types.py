"""Requests and replies as frozen dataclasses, with numpy arrays in place of encoded bytes.

Coordinates are pixels of the original image; (0, 0) is its top-left corner.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from samclip.mask import Box as Box
from samclip.mask import Mask as Mask

Point = tuple[float, float]  # x, y
Points = Sequence[Point] | Point
Boxes = Sequence[Box] | Box


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """One object to find, or a text that asks for every object it describes.

    points: pixels inside the object, one or several. negative: pixels outside it.
    mask_input: a mask from a reply with ``encoding="logits"``, float32 h×w in the model's frame.
    text: every object it describes; with points or a box, only those that contain the points or
    are in the box. Not together with mask_input.
    not_texts: what is not wanted; objects that one of these describes better are left out.
    """

    points: Points = ()
    negative: Points = ()
    box: Box | None = None
    mask_input: np.ndarray | Mask | None = None
    text: str = ""
    not_texts: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class EverythingUpdate:
    """What a search for everything has found since the last update.

    found: new masks by number. withdrawn: numbers of earlier masks that a better one replaces.
    progress: share of the work done, 0 to 1.
    """

    found: Mapping[int, Mask]
    withdrawn: Sequence[int]
    progress: float


@dataclass(frozen=True)
class Segment:
    """A segment of a panoptic picture; ``bbox`` is x, y, width and height in pixels.

    category_id: index of its label in the request's labels or vocabulary, from 1; 0 without label.
    """

    id: int
    category_id: int
    area: int  # pixels
    bbox: tuple[float, float, float, float]
    label: str = ""


@dataclass(frozen=True, eq=False)
class Panoptic:
    """One picture in which each pixel belongs to at most one segment.

    png: file in COCO's panoptic format. ids: int32 H×W, the segment of each pixel; 0 is none.
    segments: largest first.
    """

    png: bytes = field(repr=False)
    ids: np.ndarray = field(repr=False)
    segments: list[Segment]

    def coco(self, image: str, picture: str) -> dict[str, Any]:
        """Return the content of COCO's panoptic JSON for one image.

        image, picture: names of the files with the image and with ``png``.
        """
        height, width = self.ids.shape
        segments = [
            {
                "id": segment.id,
                "category_id": segment.category_id,
                "area": segment.area,
                "bbox": list(segment.bbox),
                "iscrowd": 0,
            }
            for segment in self.segments
        ]
        names = {segment.category_id: segment.label or "unnamed" for segment in self.segments}
        return {
            "images": [{"id": 1, "file_name": image, "width": width, "height": height}],
            "annotations": [{"image_id": 1, "file_name": picture, "segments_info": segments}],
            "categories": [
                {"id": id, "name": name, "supercategory": name, "isthing": 1}
                for id, name in sorted(names.items())
            ],
        }


@dataclass(frozen=True)
class Score:
    """A label with its softmax over the labels of the request, and its cosine similarity."""

    label: str
    score: float
    similarity: float


@dataclass(frozen=True, eq=False)
class Region:
    """The pixels of one label; ``score`` is its mean probability over them."""

    label: str
    score: float
    area: int  # pixels
    mask: Mask = field(repr=False)


@dataclass(frozen=True, eq=False)
class SemanticMap:
    """One label per pixel.

    label_map: int32 H×W, indices into ``labels``; -1 is background.
    regions: one per label that has pixels, largest first.
    """

    label_map: np.ndarray = field(repr=False)
    labels: tuple[str, ...]
    regions: list[Region]


@dataclass(frozen=True, eq=False)
class HeatMap:
    """How well ``label`` fits each pixel of the original image.

    levels: uint8 H×W, 0 for the value ``low`` and 255 for ``high``.
    low, high: cosine similarities, or probabilities if the label had competitors.
    """

    label: str
    levels: np.ndarray = field(repr=False)
    low: float
    high: float

    @property
    def values(self) -> np.ndarray:
        """Float32 H×W: the similarity or probability of each pixel."""
        return self.low + self.levels * np.float32((self.high - self.low) / 255)


@dataclass(frozen=True)
class Hit:
    """An image found in a collection; ``score`` is its cosine similarity to the query."""

    id: str
    score: float
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class ListedItem:
    """An image of a collection: its id and the metadata that it was indexed with."""

    id: str
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Indexed:
    """The number of images indexed, and the errors of the others (id → message).

    replaced: number of images indexed under an id that the collection already had.
    """

    indexed: int
    errors: Mapping[str, str]
    replaced: int = 0


@dataclass(frozen=True)
class Collection:
    """A collection of indexed images and the checkpoint that made its vectors.

    dtype, graphs: precision of the image encoder that made the vectors, and its graphs, as in
    ``Model``; graphs is also empty if they were not recorded.
    """

    name: str
    count: int
    dimension: int
    model_digest: str
    dtype: str = ""
    graphs: str = ""


@dataclass(frozen=True)
class ImageInfo:
    """An image's key, its size in pixels, and whether the reply needed no encoding."""

    key: str
    width: int
    height: int
    cached: bool


@dataclass(frozen=True)
class Model:
    """The checkpoint that answered; ``kind`` is "vit-b", "edge" or "pair".

    dtype: precision of the image encoder: "float32", "bfloat16", "float16", "int8" or
    "int8+bfloat16"; the last two are followed by the first digits of the graph's digest
    ("int8:4caf4841"). Empty if the service does not report it, or if the images of one request
    differ in it. graphs: digest of the compiled graphs; empty if PyTorch computed the embeddings.
    """

    name: str
    digest: str
    kind: str
    dtype: str = ""
    graphs: str = ""
