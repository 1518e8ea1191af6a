"""Requests and replies as frozen dataclasses, with numpy arrays in place of encoded bytes.

Coordinates are pixels of the original image; (0, 0) is its top-left corner.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from PIL import Image

from samclip import drawing
from samclip.masks import Box as Box
from samclip.masks import Mask as Mask
from samclip.masks import Masks as Masks

Point = tuple[float, float]  # x, y
Points = Sequence[Point] | Point
Boxes = Sequence[Box] | Box
Tiles = int | Literal["auto"]
THUMBNAIL = "thumbnail"
"""Key of the metadata with a small picture of an indexed image: ``data:image/jpeg;base64,…``."""


@dataclass(frozen=True, eq=False)
class Example:
    """An object in an image, as an example of others: one of its box, its mask and points in it.

    image: a photograph of the client, or anything that ``client.image`` takes; None: the image that
    is asked.
    mask: bool H×W in the image's size, or a mask of an earlier reply.
    negative: objects like this one are not wanted.
    """

    image: Any = field(default=None, repr=False)  # perhaps the bytes of a file
    box: Box | None = None
    mask: np.ndarray | Mask | None = None
    points: Points = ()
    negative: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """One object to find, or a text or examples that ask for every object like that.

    points: pixels inside the object, one or several. negative: pixels outside it.
    mask_input: a mask from a reply with ``encoding="logits"``, float32 h×w in the model's frame.
    text: every object it describes; with points or a box, only those that contain the points or
    are in the box. Not together with mask_input or mask.
    not_texts: what is not wanted; objects that one of these describes better are left out.
    examples: every object like one of these; with a text, only those that it describes.
    mask: a rough mask of the object from any source: bool H×W in the image's size, or a mask of an
    earlier reply. Alone, or with points and a box.
    """

    points: Points = ()
    negative: Points = ()
    box: Box | None = None
    mask_input: np.ndarray | Mask | None = None
    text: str = ""
    not_texts: Sequence[str] = ()
    examples: Sequence[Example] = ()
    mask: np.ndarray | Mask | None = None


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

    def draw(self, image_HW3: np.ndarray, step: int = 1) -> Image.Image:
        """Return the photograph with each segment tinted, and the labels of the largest below."""
        colours = [drawing.colour(number) for number in range(len(self.segments))]
        coloured = list(zip(self.segments, colours, strict=True))
        ids_HW = self.ids[::step, ::step]
        picture = drawing.tint(image_HW3, ((ids_HW == one.id, fill) for one, fill in coloured))
        names = [(one.label, fill) for one, fill in coloured if one.label]
        return drawing.with_legend(picture, names[: drawing.MOST_NAMES])

    def coco(self, image: str, picture: str) -> dict[str, Any]:
        """Return the content of COCO's panoptic JSON for one image.

        image, picture: names of the files with the image and with ``png``.
        """
        height, width = self.ids.shape
        keys = ("id", "category_id", "area")
        segments = [
            {key: getattr(one, key) for key in keys} | {"bbox": [*one.bbox], "iscrowd": 0}
            for one in self.segments
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
    """The pixels of one label; ``score`` is its mean share among the labels over them."""

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

    def draw(self, image_HW3: np.ndarray, step: int = 1) -> Image.Image:
        """Return the photograph with each label's pixels tinted, and a legend below."""
        map_HW = self.label_map[::step, ::step]
        numbered = [(region, self.labels.index(region.label)) for region in self.regions]
        picture = drawing.tint(
            image_HW3, ((map_HW == number, drawing.colour(number)) for _, number in numbered)
        )
        legend = [
            (f"{region.label}  {region.area / self.label_map.size:.0%}", drawing.colour(number))
            for region, number in numbered
        ]
        return drawing.with_legend(picture, legend)


@dataclass(frozen=True, eq=False)
class HeatMap:
    """How well ``label`` fits each pixel of the original image.

    levels: uint8 H×W, 0 for the value ``low`` and 255 for ``high``.
    low, high: cosine similarities, or shares in a softmax if the label had competitors.
    """

    label: str
    levels: np.ndarray = field(repr=False)
    low: float
    high: float

    @property
    def values(self) -> np.ndarray:
        """Float32 H×W: the similarity or share of each pixel."""
        return self.low + self.levels * np.float32((self.high - self.low) / 255)

    def draw(self, image_HW3: np.ndarray, step: int = 1) -> Image.Image:
        """Return the photograph under the colours of the heat map, and its range below."""
        blended_HW3 = image_HW3 // 2 + drawing.HEAT_256_3[self.levels[::step, ::step]] // 2
        low, high = f"{self.low:.3f}", f"{self.label}  {self.high:.3f}"
        legend = [(low, drawing.HEAT[0]), (high, drawing.HEAT[-1])]
        return drawing.with_legend(Image.fromarray(blended_HW3), legend)


def _said(metadata: Mapping[str, str]) -> str:
    """Return metadata for people, where a thumbnail would fill the screen."""
    pairs = (f", {key}={value!r:.60}" for key, value in metadata.items() if key != THUMBNAIL)
    return "".join(pairs)


@dataclass(frozen=True)
class Hit:
    """An image found in a collection; ``score`` is its cosine similarity to the query.

    box, mask: place of the object that was found in it, by a search for objects; else None.
    """

    id: str
    score: float
    metadata: Mapping[str, str]
    box: Box | None = None
    mask: Mask | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        box = f", box={self.box}" if self.box else ""
        return f"Hit(id={self.id!r}, score={self.score:.3f}{_said(self.metadata)}{box})"


@dataclass(frozen=True)
class ListedItem:
    """An image of a collection: its id and the metadata that it was indexed with.

    objects: number of objects that were indexed with it.
    vector: float32 (D,) of length 1, if it was asked for.
    """

    id: str
    metadata: Mapping[str, str]
    objects: int = 0
    vector: np.ndarray | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        return f"ListedItem(id={self.id!r}{_said(self.metadata)})"


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
    ``Model``; graphs is also empty if they were not recorded. objects: number of objects in the
    images that were indexed with them. version: grows with each change, and when the service
    optimises it.
    """

    name: str
    count: int
    dimension: int
    model_digest: str
    dtype: str = ""
    graphs: str = ""
    objects: int = 0
    version: int = 0


@dataclass(frozen=True)
class Concept:
    """A name for what some examples show, and the checkpoint that made its vectors."""

    name: str
    examples: int
    model_digest: str


@dataclass(frozen=True)
class ImageInfo:
    """An image's key, its size in pixels, and whether the reply needed no encoding."""

    key: str
    width: int
    height: int
    cached: bool


@dataclass(frozen=True)
class Model:
    """The checkpoint that answered; ``kind`` is "vit-b", "edge", "pair" or "radio".

    dtype: precision of the image encoder: "float32", "bfloat16", "float16", "int8" or
    "int8+bfloat16"; the last two are followed by the first digits of the graph's digest
    ("int8:4caf4841"). Empty if the service does not report it, or if the images of one request
    differ in it. graphs: digest of the compiled graphs; empty if PyTorch computed the embeddings.
    uncalibrated: nobody has fitted the checkpoint's scores: they rank answers, and none is a
    probability. without_masks: it makes no masks. demonstration: its card says that it is one: it
    is often wrong, and sure of it. image_size: side in pixels of the frame into which pictures are
    resized for masks. squash: they fill it, whatever their shape. sure: from this score on, nine of
    ten objects of a text were there, of as many present as absent ones; 0: no score is that sure.
    """

    name: str
    digest: str
    kind: str
    dtype: str = ""
    graphs: str = ""
    uncalibrated: bool = False
    without_masks: bool = False
    demonstration: bool = False
    image_size: int = 0
    sure: float = 0.0
    squash: bool = False


@dataclass(frozen=True)
class ServedModel:
    """A model of the service by its name in requests.

    default: it answers requests that name none. state: "loaded", "loading", "idle" (the next
    request loads it) or "failed", and reason says why. bytes: memory that it takes; 0 unless it is
    loaded. idle_s: seconds since its latest request. alias_of: the name that this one stands for,
    or "".
    digest, kind, uncalibrated, without_masks, demonstration: as in ``Model``.
    """

    name: str
    digest: str
    kind: str
    default: bool
    state: str
    bytes: int
    idle_s: float
    without_masks: bool = False
    uncalibrated: bool = False
    reason: str = ""
    alias_of: str = ""
    demonstration: bool = False
