"""Non-maximum suppression: of masks that overlap much, only the best is kept."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_IOU = 0.7
"""Of two masks or boxes that overlap more, only the better one is kept; SAM's value for boxes."""

Overlap = Callable[[int, NDArray[np.intp]], NDArray[np.floating]]
"""Returns the IoU of one item with each of several."""


def not_suppressed(overlap: Overlap, quality_M: ArrayLike, max_iou: float = MAX_IOU) -> list[int]:
    """Return the indices of the items that no better kept item overlaps, best first.

    Of equally good ones, the first counts as better.
    """
    left_M = np.argsort(-np.asarray(quality_M, np.float64), kind="stable")
    kept = []
    while len(left_M):
        best, left_M = int(left_M[0]), left_M[1:]
        kept.append(best)
        left_M = left_M[overlap(best, left_M) <= max_iou]
    return kept


def of_boxes(boxes_M4: ArrayLike) -> Overlap:
    """Return the overlap of boxes (x_min, y_min, x_max, y_max)."""
    boxes_M4 = np.asarray(boxes_M4, np.float64).reshape(-1, 4)
    area_M = (boxes_M4[:, 2:] - boxes_M4[:, :2]).prod(axis=1)

    def overlap(one: int, others: NDArray[np.intp]) -> NDArray[np.float64]:
        low_M2 = np.maximum(boxes_M4[one, :2], boxes_M4[others, :2])
        high_M2 = np.minimum(boxes_M4[one, 2:], boxes_M4[others, 2:])
        common_M = (high_M2 - low_M2).clip(0).prod(axis=1)
        return common_M / (area_M[one] + area_M[others] - common_M).clip(1e-9)

    return overlap


def of_masks(masks_Mhw: Sequence[NDArray[np.bool_]], max_iou: float = MAX_IOU) -> Overlap:
    """Return the overlap of masks of one size; 0 if their areas alone keep it below ``max_iou``."""
    area_M = np.array([np.count_nonzero(mask_hw) for mask_hw in masks_Mhw], np.float64)

    def overlap(one: int, others: NDArray[np.intp]) -> NDArray[np.float64]:
        iou_M = np.zeros(len(others))
        smaller_M = np.minimum(area_M[one], area_M[others])
        alike_M = smaller_M > max_iou * np.maximum(area_M[one], area_M[others])
        for index in np.flatnonzero(alike_M):
            other = others[index]
            common = np.count_nonzero(masks_Mhw[one] & masks_Mhw[other])
            iou_M[index] = common / (area_M[one] + area_M[other] - common)
        return iou_M

    return overlap
