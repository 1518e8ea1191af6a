"""The values passed between stages: frozen, with numpy arrays only, so any process can read them.

Shape letters: D width, h w grid, H W pixels of the original picture, M masks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from samclip_core.errors import InvalidLabels, InvalidPrompt
from samclip_core.geometry import Crop, FloatArray, Geometry
from samclip_core.regions import Regions

Box = tuple[float, float, float, float]
EncoderOutput = Literal["SAM", "SAM_FINE", "CLIP_DENSE", "CLIP_POOLED"]

PADDING, NOT_OBJECT, OBJECT, BOX_MIN, BOX_MAX = -1, 0, 1, 2, 3
"""SAM's point labels. A box is two corner points; points without a box end with a padding point."""


MAX_NOT_TEXTS = 64
"""Most unwanted texts of one prompt: each is compared with every cell of the CLIP map."""


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """The image encoder's outputs for one picture; outputs that were not requested are None.

    Arrays are float16 or float32; ``sam_Dhw`` and ``clip_dense_Dhw`` cover the padded model frame,
    and CLIP's vectors have length 1 along D. ``dtype`` is the precision of the encoder that
    computed them, as in ``SamClip.dtype``; empty if unknown. ``regions_N`` are the bytes of a file
    of regions, which is opened where ``regions`` are read. ``text_TD`` are the embeddings of the
    texts of a head of one's own (``Head.texts``). ``fine_Dhw`` are finer maps, as channels on the
    grid of ``sam_Dhw``, which some checkpoints' masks need beside it.
    """

    geometry: Geometry
    sam_Dhw: FloatArray | None = None
    clip_dense_Dhw: FloatArray | None = None
    clip_pooled_D: FloatArray | None = None
    regions_N: NDArray[np.uint8] | None = None
    dtype: str = ""
    text_TD: FloatArray | None = None
    fine_Dhw: FloatArray | None = None

    def output(self, name: EncoderOutput) -> FloatArray:
        """Return an output of the encoder. Raises ValueError if it was not requested."""
        found = {
            "SAM": self.sam_Dhw,
            "SAM_FINE": self.fine_Dhw,
            "CLIP_DENSE": self.clip_dense_Dhw,
            "CLIP_POOLED": self.clip_pooled_D,
        }[name]
        if found is None:
            raise ValueError(f"these features have no {name}: encode with {name}")
        return found

    @cached_property
    def regions(self) -> Regions:
        """The regions of the picture. Raises ValueError if there are none here."""
        if self.regions_N is None:
            raise ValueError("these features have no regions: compute them with SamClip.regions")
        return Regions.unpack(self.regions_N.data)


@dataclass(frozen=True, eq=False)
class Prompt:
    """One object to find, in pixels of the original picture.

    ``negative`` has one flag per point (empty: all points are positive). ``mask_input_hw`` holds
    the low-resolution logits of an earlier answer, over the padded model frame.
    """

    points: tuple[tuple[float, float], ...] = ()
    negative: tuple[bool, ...] = ()
    box: Box | None = None
    mask_input_hw: FloatArray | None = None

    def validate(self, geometry: Geometry) -> None:
        """Raise InvalidPrompt unless this prompt fits a picture of that size."""
        if not self.points and self.box is None and self.mask_input_hw is None:
            raise InvalidPrompt(
                "the prompt is empty: give points, a box, a mask, a text or examples"
            )
        self._validate_points(geometry)
        if self.box is not None:
            _validate_box(self.box, geometry)
        if self.mask_input_hw is not None:
            _validate_mask_input(self.mask_input_hw)

    def in_model_frame(self, geometry: Geometry) -> "Prompt":
        """Return the prompt in pixels of the model frame of a picture of that size."""
        points = tuple((float(x), float(y)) for x, y in geometry.points_to_model(self.points))
        if self.box is None:
            return replace(self, points=points)
        x_min, y_min, x_max, y_max = geometry.boxes_to_model([self.box])[0].tolist()
        return replace(self, points=points, box=(x_min, y_min, x_max, y_max))

    def _validate_points(self, geometry: Geometry) -> None:
        if self.negative and len(self.negative) != len(self.points):
            raise InvalidPrompt(
                f"{len(self.points)} points with {len(self.negative)} negative flags: "
                "give one flag per point, or none"
            )
        for x, y in self.points:
            if not (0 <= x <= geometry.width and 0 <= y <= geometry.height):
                raise InvalidPrompt(
                    f"point ({x:g}, {y:g}) lies outside the image of {geometry.width}×"
                    f"{geometry.height} pixels: give x and y in pixels of the original image"
                )


@dataclass(frozen=True, eq=False)
class TextPrompt:
    """Every object that a text describes.

    ``not_texts`` describe what is not wanted. ``where`` leaves out objects: its box those outside
    it, its points those that miss a positive one or contain a negative one.
    """

    text: str
    not_texts: tuple[str, ...] = ()
    where: Prompt | None = None

    def validate(self, geometry: Geometry) -> None:
        """Raise InvalidLabels for an empty text or one that is also unwanted.

        Raises InvalidPrompt if ``where`` does not fit.
        """
        if not all(text.strip() for text in (self.text, *self.not_texts)):
            raise InvalidLabels("a text is empty: give every text some words")
        if self.text in self.not_texts:
            raise InvalidLabels(
                f"the text {self.text!r} is also one of its not_texts: leave it out there"
            )
        if len(self.not_texts) > MAX_NOT_TEXTS:
            raise InvalidLabels(
                f"{len(self.not_texts)} not_texts, at most {MAX_NOT_TEXTS}: give fewer"
            )
        if self.where is None:
            return
        if self.where.mask_input_hw is not None:
            raise InvalidPrompt(
                "a text and a mask_input exclude each other: leave out one of them, or give the "
                "text points or a box"
            )
        self.where.validate(geometry)


def _validate_box(box: Box, geometry: Geometry) -> None:
    x_min, y_min, x_max, y_max = box
    shown = f"box ({x_min:g}, {y_min:g}, {x_max:g}, {y_max:g})"
    if not all(math.isfinite(value) for value in box):
        raise InvalidPrompt(f"{shown} is not finite: give four finite numbers")
    if x_min >= x_max or y_min >= y_max:
        raise InvalidPrompt(
            f"{shown} is inverted or empty: expected x_min < x_max and y_min < y_max"
        )
    if x_min < 0 or y_min < 0 or x_max > geometry.width or y_max > geometry.height:
        raise InvalidPrompt(
            f"{shown} extends beyond the image of {geometry.width}×{geometry.height} pixels: "
            "clip it to the image"
        )


def _validate_mask_input(mask_input_hw: FloatArray) -> None:
    shape = mask_input_hw.shape
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise InvalidPrompt(
            f"mask_input has shape {shape}: send the square logits of an earlier answer"
        )
    if not np.isfinite(mask_input_hw).all():
        raise InvalidPrompt("mask_input contains values that are not finite: send logits")


@dataclass(frozen=True, eq=False)
class MaskSet:
    """The masks that answer one prompt, best predicted IoU first.

    ``masks_MHW`` bool over the original; ``logits_Mhw`` float32, low resolution, over the padded
    model frame; ``predicted_iou_M`` and ``stability_M`` float32 in [0, 1]. ``object_score``: how
    sure the model is that the prompt points at an object, 0 to 1; None if it does not tell.
    """

    masks_MHW: NDArray[np.bool_]
    predicted_iou_M: FloatArray
    stability_M: FloatArray
    logits_Mhw: NDArray[np.float32]
    object_score: float | None = None


STABILITY_OFFSET = 1.0
"""Stability is the IoU of the masks at this offset above and below the threshold, as in SAM."""


@dataclass(frozen=True, eq=False)
class MaskLogits:
    """The masks of one prompt before they are enlarged, best predicted IoU first.

    ``logits_Mhw`` and ``object_score`` as in MaskSet; pixels above ``threshold`` are the mask's.
    """

    geometry: Geometry
    logits_Mhw: NDArray[np.float32]
    predicted_iou_M: FloatArray
    threshold: float
    object_score: float | None = None

    def enlarge(self, index: int) -> tuple[NDArray[np.bool_], float]:
        """Return one mask over the original picture, and its stability."""
        logits_HW = self.geometry.logits_to_original(self.logits_Mhw[index])
        smaller, larger = (
            np.count_nonzero(logits_HW > self.threshold + offset)
            for offset in (STABILITY_OFFSET, -STABILITY_OFFSET)
        )
        return logits_HW > self.threshold, smaller / larger if larger else 0.0

    def enlarge_all(self) -> MaskSet:
        count = len(self.logits_Mhw)
        masks_MHW = np.empty((count, self.geometry.height, self.geometry.width), np.bool_)
        stability_M = np.empty(count, np.float32)
        for index in range(count):
            masks_MHW[index], stability_M[index] = self.enlarge(index)
        scores = self.predicted_iou_M, stability_M
        return MaskSet(masks_MHW, *scores, self.logits_Mhw, self.object_score)


class MaskHead(Protocol):
    """The interface of a head that finds masks: ``samclip_core.answers.sam_head.SamHead``.

    Masks below the two thresholds are dropped, except in the answer to a user's prompt.
    """

    min_predicted_iou: float
    min_stability: float

    def segment(
        self, features: ImageFeatures, prompts: Sequence[Prompt], multimask: bool
    ) -> list[MaskSet]:
        """Return one MaskSet per prompt, in order: three masks with ``multimask``, else one."""


@dataclass(frozen=True, eq=False)
class EverythingMask:
    """One object found without a user's prompt, with its label if labels were given.

    Stored as low-resolution logits over the padded model frame, because a hundred full-size masks
    of a large picture would not fit in memory; ``mask_HW`` is computed on each access. With
    ``crop``, ``geometry`` and ``logits_hw`` are those of this crop of the picture. ``region`` is
    the index of the picture's region that this is, if that is known. Masks of one prompt with the
    same ``thing`` are sizes of one thing.
    """

    geometry: Geometry
    logits_hw: FloatArray
    predicted_iou: float
    stability: float
    label: str = ""
    label_score: float = 0.0
    crop: Crop | None = None
    region: int | None = None
    thing: int = 0

    @classmethod
    def of_region(cls, geometry: Geometry, regions: Regions, index: int) -> Self:
        """Return one of a picture's regions."""
        iou, stability = regions.predicted_iou_R[index], regions.stability_R[index]
        return cls(geometry, regions.logits(index), float(iou), float(stability))

    @property
    def mask_HW(self) -> NDArray[np.bool_]:
        """Bool over the original picture."""
        mask_hw = self.geometry.masks_to_original(self.logits_hw[None])[0]
        if self.crop is None:
            return mask_hw
        crop = self.crop
        mask_HW = np.zeros((crop.picture_height, crop.picture_width), np.bool_)
        mask_HW[crop.y : crop.y + crop.height, crop.x : crop.x + crop.width] = mask_hw
        return mask_HW

    @property
    def inside_hw(self) -> NDArray[np.bool_]:
        """Bool over the cells of the logits that hold picture."""
        rows, columns = self.geometry.grid(self.logits_hw.shape[-1])
        return self.logits_hw[:rows, :columns] > 0


@dataclass(frozen=True, eq=False)
class Region:
    """The pixels assigned to one label; ``score`` is the label's mean share over them."""

    label: str
    score: float
    index: int
    area: int
    label_map_HW: NDArray[np.integer]

    @property
    def mask_HW(self) -> NDArray[np.bool_]:
        """Bool over the original picture, computed on each access."""
        return self.label_map_HW == self.index


@dataclass(frozen=True, eq=False)
class SemanticMap:
    """A label per pixel: int16 H×W indices into the request's labels, -1 for background.

    ``regions`` are sorted largest first and omit labels without pixels.
    """

    label_map_HW: NDArray[np.int16]
    regions: tuple[Region, ...]


@dataclass(frozen=True, eq=False)
class HeatMap:
    """How well a label fits each pixel: uint8 H×W, from ``low`` (0) to ``high`` (255)."""

    levels_HW: NDArray[np.uint8]
    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """The fit of one label: softmax over the requested labels, and the cosine."""

    label: str
    score: float
    similarity: float
