"""Segment everything: points over the picture, filtering and non-maximum suppression.

N points, M masks, s side of the low-resolution logits, K kept masks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.areas import Namer
from samclip_core.answers.points import (
    MAX_IOU,
    Box,
    PointGrid,
    grid_points,
    is_cut,
    not_suppressed,
    of_boxes,
    of_masks,
)
from samclip_core.answers.steps import Steps, Terms, gathered, questions
from samclip_core.calibration import AdaptiveSearch
from samclip_core.config import SamClipConfig
from samclip_core.geometry import Crop, Geometry
from samclip_core.io.masks import pixel_box, runs_of_logits
from samclip_core.types import EverythingMask, ImageFeatures, MaskSet, Prompt

One = TypeVar("One")


@dataclass(frozen=True, kw_only=True)
class EverythingSettings:
    """Where to look, and the criteria for keeping a mask."""

    adaptive: AdaptiveSearch | None = None
    """Ask only the points that ``samclip_core.answers.points`` chooses, and compare masks; or, if
    None, ask all points and compare the masks' boxes, as SAM does."""
    min_predicted_iou: float | None = None
    min_stability: float | None = None
    """None, here or in ``min_predicted_iou``: the SAM head's threshold."""
    max_iou: float = MAX_IOU
    min_area: float = 0.0
    """Smallest mask, island or hole, as a fraction of the picture; 0 keeps all."""
    points_per_round: int = 64
    """The masks are compared with each other, and can be read, after this many points."""


SAM = EverythingSettings()
"""With these, segment_anything's SamAutomaticMaskGenerator finds the same masks."""


def settings_of(config: SamClipConfig) -> EverythingSettings:
    """Return the settings that were fitted to a checkpoint, or else SAM's."""
    search = config.fitted.search
    if search is None:
        return SAM
    return EverythingSettings(
        adaptive=search,
        min_predicted_iou=search.min_predicted_iou,
        min_area=search.min_area,
        points_per_round=32,
    )


@dataclass(frozen=True, eq=False)
class Found:
    """A mask, and the features of the picture or crop in which it was found.

    ``box`` lies in the whole picture, from the first to the last pixel as in segment_anything.
    ``inside_hw`` is the mask over the cells of its logits that hold picture.
    """

    mask: EverythingMask
    features: ImageFeatures
    inside_hw: NDArray[np.bool_]
    box: Box


class Search:
    """A search for everything in one picture, which can be read after every round.

    Masks are kept by SAM's rules: in one crop the better predicted IoU wins, among crops the
    smaller one. A later round may withdraw a mask in favour of another, or bring it back.
    """

    def __init__(
        self, terms: Terms, settings: EverythingSettings, namer: Namer | None = None
    ) -> None:
        """Use the thresholds of ``terms`` for those that the settings leave open."""
        self._settings, self._namer = settings, namer
        self._at_once = terms.at_once
        own_iou, own_stability = settings.min_predicted_iou, settings.min_stability
        self._min_iou = terms.min_predicted_iou if own_iou is None else own_iou
        self._min_stability = terms.min_stability if own_stability is None else own_stability
        self._earlier: list[Found] = []  # what was kept in each of the crops before this one
        self._here: list[Found] = []
        self._kept: list[Found] = []
        self.points = 0
        """Number of points asked so far."""
        self.progress = 0.0
        """Share of the work on this picture or crop that is done."""
        self._next_N: NDArray[np.intp] = np.empty(0, np.intp)

    @property
    def found(self) -> list[Found]:
        """The masks so far, without duplicates, the better ones first."""
        if not self._earlier:
            return self._kept
        every = [*self._earlier, *self._kept]
        sizes = [one.mask.geometry for one in every]
        quality_M = [1 / (size.height * size.width) for size in sizes]
        overlap = of_boxes([one.box for one in every])
        return [every[i] for i in not_suppressed(overlap, quality_M, self._settings.max_iou)]

    def named(self, one: Found) -> EverythingMask:
        """Return a mask with its label, if it has any."""
        return self._namer.name(one.mask, one.features) if self._namer else one.mask

    def rounds(
        self, features: ImageFeatures, points_per_side: int, crop: Crop | None = None
    ) -> Iterator[Steps[None]]:
        """Yield the rounds of a search of one picture, or one crop of it: run each before the next.

        ``features`` are those of the crop if there is one, and need the SAM embedding. What is
        found does not depend on ``terms.at_once``. Raises ValueError if ``points_per_side`` is
        below 1.
        """
        if points_per_side < 1:
            raise ValueError(f"points_per_side is {points_per_side}, expected at least 1")
        self._earlier += self._kept
        self._here, self._kept, self.progress = [], [], 0.0
        if self._settings.adaptive is None:
            points_N2, size = grid_points(points_per_side), self._settings.points_per_round
            for start in range(0, len(points_N2), size):
                done = min(1.0, (start + size) / len(points_N2))
                yield self._round(features, points_N2[start : start + size], crop, done)
            return
        grid = PointGrid(features, points_per_side, self._settings.adaptive)
        self._next_N = grid.first()
        while len(self._next_N):
            yield self._adaptive_round(grid, features, crop)

    def _adaptive_round(
        self, grid: PointGrid, features: ImageFeatures, crop: Crop | None
    ) -> Steps[None]:
        yield from self._round(features, grid.points_N2[self._next_N], crop, grid.progress)
        masks_Khw = [one.inside_hw for one in self._kept]
        self._next_N = grid.following(masks_Khw, self._settings.points_per_round)
        if not len(self._next_N):
            self.progress = 1.0

    def _round(
        self,
        features: ImageFeatures,
        points_N2: NDArray[np.float64],
        crop: Crop | None,
        progress: float,
    ) -> Steps[None]:
        """Ask at points, given as shares of the picture's width and height."""
        judged = _judged_in(features.geometry)
        in_frame = replace(features, geometry=judged)
        prompts = [
            Prompt(points=((float(x), float(y)),))
            for x, y in points_N2 * (judged.width, judged.height)
        ]
        for question in questions(in_frame, prompts, multimask=True, at_once=self._at_once):
            for masks in (yield question):
                self._here += self._good(masks, judged, features, crop)
        self.points += len(prompts)
        self._kept = yield from self._without_duplicates()
        self.progress = progress

    def _good(
        self, masks: MaskSet, judged: Geometry, features: ImageFeatures, crop: Crop | None
    ) -> Iterator[Found]:
        """Yield the masks of one point that meet the criteria."""
        good_M = masks.predicted_iou_M >= self._min_iou
        good_M &= masks.stability_M >= self._min_stability
        for index in np.flatnonzero(good_M):
            logits_ss, shape_HW = masks.logits_Mhw[index], masks.masks_MHW[index]
            rows, columns = judged.grid(logits_ss.shape[-1])
            if self._settings.min_area:
                logits_ss = _without_specks(logits_ss, rows, columns, self._settings.min_area)
                shape_HW = logits_ss[:rows, :columns] > 0
            inside_hw = logits_ss[:rows, :columns] > 0
            box = _box_in_picture(shape_HW, features.geometry, crop)
            if shape_HW.any() and not (crop and is_cut(box, crop)):
                mask = EverythingMask(
                    features.geometry,
                    logits_ss.astype(np.float16),  # half the memory
                    float(masks.predicted_iou_M[index]),
                    float(masks.stability_M[index]),
                    crop=crop,
                )
                yield Found(mask, features, inside_hw, box)

    def _without_duplicates(self) -> Steps[list[Found]]:
        """Return what has been found in this picture or crop, the better masks first."""
        every, max_iou = self._here, self._settings.max_iou
        if self._settings.adaptive:
            overlap = of_masks([one.inside_hw for one in every], max_iou)
        else:
            overlap = of_boxes([one.box for one in every])
        quality_M = [one.mask.predicted_iou for one in every]
        kept = yield from gathered(not_suppressed(overlap, quality_M, max_iou))
        return [every[index] for index in kept]


class Changes(Generic[One]):
    """What changed in a search between two looks at it; every mask has a number of its own."""

    def __init__(self) -> None:
        self._numbers: dict[One, int] = {}
        self._next = 1

    def since(self, found: Sequence[One]) -> tuple[dict[int, One], list[int]]:
        """Return the new masks by number, and the numbers of those that are gone."""
        now = set(found)
        gone = [one for one in self._numbers if one not in now]
        withdrawn = [self._numbers.pop(one) for one in gone]
        new = [one for one in found if one not in self._numbers]
        numbered = dict(enumerate(new, start=self._next))
        self._next += len(new)
        self._numbers |= {one: number for number, one in numbered.items()}
        return numbered, withdrawn


def of_regions(features: ImageFeatures, namer: Namer | None) -> Iterator[EverythingMask]:
    """Yield the regions as masks, largest first, named if there is a ``namer``."""
    regions = features.regions
    for index in np.argsort(-regions.area_R, kind="stable"):
        mask = EverythingMask.of_region(features.geometry, regions, index)
        yield namer.name_by(mask, regions.clip_RD[index]) if namer else mask


def largest_first(every: Sequence[Found]) -> list[Found]:
    """Sort by the number of pixels in the whole picture."""

    def area(one: Found) -> int:
        return runs_of_logits(one.mask.geometry, one.mask.logits_hw, one.mask.crop).area

    return sorted(every, key=area, reverse=True)


def _judged_in(geometry: Geometry) -> Geometry:
    """Return the size at which masks are judged: the picture's, at most the model frame's.

    The head enlarges masks to this size, so its time and memory do not depend on the size of a
    large photograph.
    """
    larger = max(geometry.height, geometry.width) > geometry.size
    return geometry.model_frame if larger else geometry


def _box_in_picture(mask_HW: NDArray[np.bool_], geometry: Geometry, crop: Crop | None) -> Box:
    """Return the box from the first to the last pixel of a mask that has any size."""
    x_min, y_min, x_max, y_max = pixel_box(mask_HW)
    height, width = mask_HW.shape
    scale = np.array([geometry.width / width, geometry.height / height] * 2)
    corner = np.array([crop.x, crop.y] * 2 if crop else [0] * 4)
    box = np.array([x_min, y_min, max(x_max - 1, 0), max(y_max - 1, 0)]) * scale + corner
    return (float(box[0]), float(box[1]), float(box[2]), float(box[3]))


def _without_specks(
    logits_ss: NDArray[np.float32], rows: int, columns: int, min_area: float
) -> NDArray[np.float32]:
    """Remove small islands and fill small holes in the cells that hold picture."""
    cleaned_ss = logits_ss.copy()
    valid_hw = cleaned_ss[:rows, :columns]
    min_cells = min_area * rows * columns
    for sign in (-1, 1):  # holes first: they count towards their island's area
        side_hw = (sign * valid_hw > 0).astype(np.uint8)
        _, piece_hw, stats, _ = cv2.connectedComponentsWithStats(side_hw)
        small = stats[:, cv2.CC_STAT_AREA] < min_cells
        small[0] = False
        valid_hw[small[piece_hw]] = -sign
    return cleaned_ss
