"""The search for a picture's regions (``samclip_core.regions``): everything, and its vectors.

And which of them are where the points and the box of a prompt say. s×s cells of a mask.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.areas import mean_under_masks
from samclip_core.answers.dense import valid_cells
from samclip_core.answers.everything import Search, settings_of
from samclip_core.answers.request import Output, Request, for_masks
from samclip_core.answers.steps import Steps, Terms
from samclip_core.answers.zero_shot import unit
from samclip_core.config import SamClipConfig
from samclip_core.geometry import FloatArray, Geometry
from samclip_core.io.masks import pixel_box
from samclip_core.regions import MAX_REGIONS, Regions, to_levels
from samclip_core.types import EverythingMask, ImageFeatures, Prompt


class FindRegions(Request[Regions]):
    """Which regions does a picture have? By the checkpoint's own search."""

    def outputs(self, config: SamClipConfig) -> tuple[Output, ...]:
        return (*for_masks(config), "CLIP_DENSE")

    def steps(
        self, features: ImageFeatures, text_XD: FloatArray, config: SamClipConfig, terms: Terms
    ) -> Steps[Regions]:
        """Search the picture, then take the vectors under each mask."""
        search = Search(terms, settings_of(config))
        for steps in search.rounds(features, config.points_per_side):
            yield from steps
        return regions_of(features, [one.mask for one in search.found[:MAX_REGIONS]])


def regions_of(features: ImageFeatures, masks: Sequence[EverythingMask]) -> Regions:
    """Return masks of a picture as regions, in their order."""
    geometry = features.geometry
    side = len(masks[0].logits_hw) if masks else 1
    levels = [to_levels(mask.logits_hw) for mask in masks]
    levels_Rss = np.array(levels, np.int8).reshape(-1, side, side)
    placed = [_box_and_area(geometry, mask.logits_hw) for mask in masks]
    return Regions(
        levels_Rss,
        np.array([mask.predicted_iou for mask in masks], np.float32),
        np.array([mask.stability for mask in masks], np.float32),
        np.array([box for box, _ in placed], np.float32).reshape(-1, 4),
        np.array([area for _, area in placed], np.float32),
        mean_under_masks(geometry, features.output("CLIP_DENSE"), levels_Rss).astype(np.float16),
        valid_cells(features).mean(axis=(1, 2)).astype(np.float16),
        unit(mean_under_masks(geometry, features.output("SAM"), levels_Rss)).astype(np.float16),
    )


def _box_and_area(geometry: Geometry, logits_ss: FloatArray) -> tuple[list[float], float]:
    """Return a mask's box in pixels of the original, and its share of the picture."""
    inside_hw = geometry.logits_to_frame(logits_ss) > 0
    x_min, y_min, x_max, y_max = pixel_box(inside_hw)
    x, y = geometry.width / inside_hw.shape[1], geometry.height / inside_hw.shape[0]
    return [x_min * x, y_min * y, x_max * x, y_max * y], float(inside_hw.mean())


IN_BOX = 0.8
"""A mask is in a box if this much of it is."""


def in_box(where: Prompt | None, geometry: Geometry, side: int) -> NDArray[np.bool_]:
    """Return the cells whose centre is in the box; all if there is none.

    The centre of a cell that ends in the padding may lie there: then the picture's edge counts.
    """
    if where is None or where.box is None:
        return np.ones((side, side), np.bool_)
    x_min, y_min, x_max, y_max = where.box
    centre_s = (np.arange(side) + 0.5) * (geometry.size / side)
    x_s = np.minimum(centre_s, geometry.input_width)
    y_s1 = np.minimum(centre_s, geometry.input_height)[:, None]
    return (x_s >= x_min) & (x_s <= x_max) & (y_s1 >= y_min) & (y_s1 <= y_max)


def fits(where: Prompt | None, inside_ss: NDArray[np.bool_], geometry: Geometry) -> bool:
    """Return whether a mask contains the positive points only, and is in the box."""
    if where is None:
        return True
    side = len(inside_ss)
    rows, columns = geometry.grid(side)
    inside_hw = inside_ss[:rows, :columns]
    in_box_hw = in_box(where, geometry, side)[:rows, :columns]
    if (inside_hw & in_box_hw).sum() < IN_BOX * inside_hw.sum():
        return False
    negative = where.negative or (False,) * len(where.points)
    for (x, y), unwanted in zip(where.points, negative, strict=True):
        row, column = (int(value * side / geometry.size) for value in (y, x))
        if inside_hw[min(row, rows - 1), min(column, columns - 1)] == unwanted:
            return False
    return True
