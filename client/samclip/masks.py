"""Masks of objects in a photograph, and the forms in which people and other programs see them."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, SupportsIndex, TypeVar, overload

import numpy as np
from PIL import Image

from samclip import drawing, mask_codecs
from samclip.images import encode_image, read_pixels

T = TypeVar("T")
Box = tuple[float, float, float, float]  # x_min, y_min, x_max, y_max
COMPARED_PIXELS = 192  # longest side of the masks that are compared
INSIDE, PART = 0.9, 0.8  # so much of a part is inside its whole, whose area it has at most in part
CRUMB = 0.002  # share of the photograph
SHOWN_MASKS = 3  # in the text for a list of them, which may have hundreds


@dataclass(frozen=True, eq=False)
class Mask:
    """One object. numpy reads it as ``array``; pixels are decoded only when they are needed.

    data: bool H×W, or the mask as the service encoded it. box, area: in pixels.
    ``label`` and ``label_score`` are set if the request had labels or a text.
    best: the best mask of the same thing, of which this one is another size; None: this one is.
    photograph: its file; empty if the photograph was made by ``by_key``.
    object_score: a SAM 2.1's, 0 to 1: how sure it is that a prompt points at an object; else None.

    >>> (mask,) = photo.segment(box=(15, 0, 385, 299))
    >>> int(mask.array.sum()) == mask.area
    True
    """

    data: "np.ndarray | mask_codecs.Encoded"
    box: Box
    area: int
    predicted_iou: float
    stability_score: float
    label: str = ""
    label_score: float = 0.0
    photograph: bytes = b""
    best: "Mask | None" = field(default=None, repr=False)
    object_score: float | None = None

    @cached_property
    def array(self) -> np.ndarray:
        """Bool H×W in the original image's size, decoded when first asked for.

        With ``encoding="logits"``, float32 h×w logits in the model's frame. Raises ValueError if
        the encoded mask is damaged.
        """
        if isinstance(self.data, np.ndarray):
            return self.data
        return np.ascontiguousarray(self.data.decode())

    def __repr__(self) -> str:
        label = f"{self.label!r} {self.label_score:.2f}, " if self.label else ""
        x_min, y_min, x_max, y_max = (f"{side:g}" for side in self.box)
        box = f"box ({x_min}, {y_min}, {x_max}, {y_max})"
        iou = f", predicted IoU {self.predicted_iou:.2f}" if self.predicted_iou else ""
        return f"Mask({label}{self.area:,} pixels, {box}{iou})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype=dtype, copy=copy)

    @property
    def score(self) -> float:
        """How sure the model is, 0 to 1: the label's score, or else the predicted IoU."""
        return self.label_score if self.label else self.predicted_iou

    @property
    def rle(self) -> dict[str, Any]:
        """The mask as COCO's compressed run lengths: ``{"size": [height, width], "counts": str}``.

        ``pycocotools.mask`` reads it, and ``json`` writes it.

        >>> photo.segment(box=(15, 0, 385, 299))[0].rle
        {'size': [300, 451], 'counts': '...'}
        """
        if isinstance(self.data, mask_codecs.Encoded) and self.data.kind == "rle":
            size, counts = [self.data.height, self.data.width], self.data.data
        else:
            mask_HW = self._pixels()
            size, counts = list(mask_HW.shape), mask_codecs.encode_rle(mask_HW)
        return {"size": size, "counts": counts.decode("ascii")}

    @property
    def polygons(self) -> list[np.ndarray]:
        """The outline as closed rings, float32 (K, 2) of x and y: parts and holes.

        By the even-odd rule they give the mask again exactly. Parts run clockwise on the screen,
        holes anticlockwise; pixels that touch only at a corner belong to separate parts.

        >>> rings = photo.segment(box=(15, 0, 385, 299))[0].polygons
        >>> rings[0].dtype, rings[0].shape[1]
        (dtype('float32'), 2)
        """
        if isinstance(self.data, mask_codecs.Encoded) and self.data.kind == "polygons":
            return [ring.reshape(-1, 2) for ring in self.data.data]
        return mask_codecs.encode_polygons(self._pixels())

    def to_coco(self, *, image_id: int, category_id: int) -> dict[str, Any]:
        """Return the mask as COCO's JSON has it: an annotation without its ``id``, with a score.

        ``{"id": number, **mask.to_coco(…)}`` is an annotation of a data set, and a list of them
        without ids are results for ``COCO.loadRes``.

        >>> masks = photo.segment(text="a cat")
        >>> results = [mask.to_coco(image_id=1, category_id=17) for mask in masks]
        >>> sorted(results[0])
        ['area', 'bbox', 'category_id', 'image_id', 'iscrowd', 'score', 'segmentation']
        """
        x_min, y_min, x_max, y_max = self.box
        return {
            "image_id": image_id,
            "category_id": category_id,
            "segmentation": self.rle,
            "area": self.area,
            "bbox": [x_min, y_min, x_max - x_min, y_max - y_min],
            "iscrowd": 0,
            "score": self.score,
        }

    def cutout(self) -> Image.Image:
        """Return the object cut out of its photograph: RGBA, transparent around the object.

        It has the size of the mask's box. Raises ValueError if the mask is empty, or does not know
        its photograph, or that has another size.

        >>> (mask,) = photo.segment(box=(15, 0, 385, 299))
        >>> mask.cutout().save("cat.png")
        """
        if not self.photograph:
            raise ValueError("the mask knows no photograph: ask about one made by client.image")
        alpha = drawing.mask_image(self._pixels())
        box = alpha.getbbox()
        if box is None:
            raise ValueError("the mask is empty: there is nothing to cut out")
        picture = Image.fromarray(read_pixels(self.photograph))
        if picture.size != alpha.size:
            sizes = "the photograph has {}×{} pixels, its mask {}×{}: "
            raise ValueError(sizes.format(*picture.size, *alpha.size) + "it is another file")
        picture = picture.crop(box)
        picture.putalpha(alpha.crop(box))
        return picture

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the mask as a picture, white on black, in the format of the path's suffix: PNG, …

        Raises ValueError for a suffix that Pillow does not know, OSError if it cannot be written.

        >>> photo.segment((200, 60))[0].save("mask.png")
        """
        drawing.mask_image(self._pixels()).save(path)

    def _repr_png_(self) -> bytes | None:
        """Return the picture that a notebook displays: the cut-out, if there is one."""
        if not self.photograph or not self.area or self.array.dtype != bool:
            return None
        picture = self.cutout()
        picture.thumbnail((drawing.SHOWN_PIXELS, drawing.SHOWN_PIXELS))
        return encode_image(picture)

    def _thinned(self, step: int) -> np.ndarray:
        """Return bool h×w: every ``step``-th pixel of every ``step``-th row, for drawing."""
        if step == 1:
            return self._pixels()
        decoded = self.data if isinstance(self.data, np.ndarray) else self.data.decode()
        return decoded[::step, ::step]

    def _pixels(self) -> np.ndarray:
        if self.array.dtype != bool:
            raise ValueError("the mask holds logits: ask for it without encoding='logits'")
        return self.array


class Masks(list[Mask]):
    """A list of masks of one photograph, which a notebook displays over it."""

    @overload
    def __getitem__(self, index: SupportsIndex) -> Mask: ...
    @overload
    def __getitem__(self, index: slice) -> "Masks": ...
    def __getitem__(self, index: SupportsIndex | slice) -> "Mask | Masks":
        found = super().__getitem__(index)
        return Masks(found) if isinstance(found, list) else found

    def __repr__(self) -> str:
        some = [repr(mask) for mask in list(self)[:SHOWN_MASKS]]
        more = [f"… {len(self)} masks"] if len(self) > SHOWN_MASKS else []
        return f"Masks([{', '.join([*some, *more])}])"

    @property
    def things(self) -> "list[Masks]":
        """The masks of each thing: the best, then its other sizes.

        A text is often answered by several sizes of one thing, such as a cup with its saucer and
        without; a click with ``multimask`` always is.

        >>> found = photo.segment(text="a cat")
        >>> best = [thing[0] for thing in found.things]
        """
        several: dict[Mask, Masks] = {}
        for mask in self:
            several.setdefault(mask.best or mask, Masks()).append(mask)
        return [*several.values()]

    @property
    def wholes(self) -> "Masks":
        """The masks that are no part of a larger one, and no crumbs: everything at a glance."""
        if not self:
            return Masks()
        step = max(1, max(self[0]._pixels().shape) // COMPARED_PIXELS)
        inside_MN = np.stack([mask._thinned(step).ravel() for mask in self]).astype(np.float32)
        common_MM, area_M = inside_MN @ inside_MN.T, inside_MN.sum(axis=1)
        part_MM = (common_MM >= INSIDE * area_M[:, None]) & (area_M[:, None] <= PART * area_M)
        is_whole_M = ~part_MM.any(axis=1) & (area_M >= CRUMB * inside_MN.shape[1])
        return Masks(mask for mask, is_whole in zip(self, is_whole_M, strict=True) if is_whole)

    def to_supervision(self) -> Any:
        """Return ``supervision.Detections``: boxes, masks, confidence, and class names if labelled.

        ``confidence`` is the label's score, or else the predicted IoU; ``class_id`` numbers the
        labels in order of appearance. Raises ModuleNotFoundError without ``pip install
        supervision``.

        >>> detections = photo.segment(text="a cat").to_supervision()
        >>> detections.mask.shape[1:], set(detections["class_name"].tolist())
        ((300, 451), {'a cat'})
        """
        try:
            from supervision import Detections
        except ModuleNotFoundError as error:
            if error.name != "supervision":
                raise
            message = "to_supervision needs the package supervision: pip install supervision"
            raise ModuleNotFoundError(message, name="supervision") from None
        if not self:
            return Detections.empty()
        labels = [mask.label for mask in self]
        names = list(dict.fromkeys(labels))
        return Detections(
            xyxy=np.array([mask.box for mask in self], np.float32),
            mask=np.stack([mask._pixels() for mask in self]),
            confidence=np.array([mask.score for mask in self], np.float32),
            class_id=np.array([names.index(label) for label in labels]) if any(labels) else None,
            data={"class_name": np.array(labels)} if any(labels) else {},
        )

    def draw(self, image_HW3: np.ndarray, names: bool = True, step: int = 1) -> Image.Image:
        """Return the photograph with its things tinted and outlined, the smallest on top.

        Of each thing, the best mask is drawn. names: the labels of the largest below. step: the
        picture has every ``step``-th pixel.
        """
        shown = [mask for mask in self if mask.best not in self]
        numbered = sorted(enumerate(shown), key=lambda each: -each[1].area)
        picture = drawing.tint(
            image_HW3, ((mask._thinned(step), drawing.colour(number)) for number, mask in numbered)
        )
        labelled = [
            (f"{mask.label}  {mask.label_score:.2f}", drawing.colour(number))
            for number, mask in numbered
            if mask.label and names
        ]
        return drawing.with_legend(picture, labelled[: drawing.MOST_NAMES])

    def _repr_jpeg_(self) -> bytes | None:
        """Return the picture that a notebook displays, if the masks know their photograph."""
        photographs = {mask.photograph for mask in self}
        if len(photographs) != 1 or b"" in photographs:
            return None
        return drawing.jpeg(drawing.shown(photographs.pop(), self.draw))


def within(answer: Any, kind: type[T]) -> Iterator[T]:
    """Yield the values of a type, such as masks, from the dictionaries and lists of an answer."""
    if isinstance(answer, kind):
        yield answer
    elif isinstance(answer, Mapping | list):
        for each in answer.values() if isinstance(answer, Mapping) else answer:
            yield from within(each, kind)
