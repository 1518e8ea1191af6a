"""What a search for everything asks: points of a grid.

And what it leaves out: of masks that overlap much, only the best is kept. N points of the grid, K M
masks, D width of the SAM embedding, h w its cells.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samclip_core.calibration import AdaptiveSearch
from samclip_core.geometry import Crop
from samclip_core.types import ImageFeatures

STEP = 4
"""Every fourth row and column of the grid is asked first."""
MOST = 0.5
"""Largest share of the points that is asked."""
REACH = 2.5
"""A point explains points within this many rows and columns."""
_FAR = 9.0  # more than any distance: nothing near has been asked


class PointGrid:
    """An even grid of points over a picture, of which a part is asked.

    The distance of two points is the difference of their SAM embeddings, one minus the cosine, and
    ``search.parted`` more if a mask contains only one of them. A point is explained by an asked one
    at a smaller distance than ``search.explained``; the next one is the furthest from all asked.
    """

    def __init__(
        self, features: ImageFeatures, points_per_side: int, search: AdaptiveSearch
    ) -> None:
        """``features`` need the SAM embedding."""
        self._search = search
        self._side = points_per_side
        self.points_N2 = grid_points(points_per_side)
        self._embedding_ND = _embedding_at(features, self.points_N2)
        self._row_N, self._column_N = np.divmod(np.arange(points_per_side**2), points_per_side)
        self._asked: list[int] = []
        self._most = max(1, int(MOST * points_per_side**2))

    @property
    def progress(self) -> float:
        """Share of the points that may be asked which have been chosen."""
        return min(1.0, len(self._asked) / self._most)

    def first(self) -> NDArray[np.intp]:
        """Return the indices of the points to begin with."""
        start = min(STEP // 2, (self._side - 1) // 2)
        chosen_N = (self._row_N % STEP == start) & (self._column_N % STEP == start)
        self._asked = np.flatnonzero(chosen_N).tolist()
        return np.flatnonzero(chosen_N)

    def following(self, masks_Khw: Sequence[NDArray[np.bool_]], most: int) -> NDArray[np.intp]:
        """Return the indices of at most ``most`` further points; none if all are explained.

        ``masks_Khw`` cover the picture, at any resolution.
        """
        inside_NK = np.zeros((len(self.points_N2), len(masks_Khw)), np.bool_)
        for index, mask_hw in enumerate(masks_Khw):
            height, width = mask_hw.shape
            x_N, y_N = (self.points_N2 * (width, height)).astype(np.intp).T
            inside_NK[:, index] = mask_hw[y_N, x_N]
        distance_N = np.full(len(self.points_N2), _FAR)
        for point in self._asked:
            self._shorten(distance_N, point, inside_NK)
        chosen: list[int] = []
        while len(chosen) < min(most, self._most - len(self._asked)):
            point = int(distance_N.argmax())
            if distance_N[point] < self._search.explained:
                break
            chosen.append(point)
            self._shorten(distance_N, point, inside_NK)
        self._asked += chosen
        return np.array(chosen, np.intp)

    def _shorten(
        self, distance_N: NDArray[np.float64], point: int, inside_NK: NDArray[np.bool_]
    ) -> None:
        """Take a point into account that is asked."""
        rows_N, columns_N = self._row_N - self._row_N[point], self._column_N - self._column_N[point]
        near_P = np.flatnonzero(rows_N**2 + columns_N**2 <= REACH**2)
        parted_P = (inside_NK[near_P] != inside_NK[point]).any(axis=1)
        difference_P = 1 - self._embedding_ND[near_P] @ self._embedding_ND[point]
        own_P = difference_P + self._search.parted * parted_P
        distance_N[near_P] = np.minimum(distance_N[near_P], own_P)
        distance_N[point] = 0


def grid_points(points_per_side: int) -> NDArray[np.float64]:
    """Return N×2 (x, y): the centres of a points_per_side² division of the unit square."""
    share = (np.arange(points_per_side) + 0.5) / points_per_side
    x, y = np.meshgrid(share, share)
    return np.stack([x.reshape(-1), y.reshape(-1)], axis=1)


def _embedding_at(features: ImageFeatures, points_N2: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the SAM embedding of the cell at each point, N×D, rows of length 1."""
    geometry, sam_Dhw = features.geometry, features.output("SAM")
    side = sam_Dhw.shape[-1]
    frame_xy = np.array([geometry.input_width, geometry.input_height]) / geometry.size * side
    x_N, y_N = (points_N2 * frame_xy).astype(np.intp).T
    embedding_ND = sam_Dhw[:, y_N, x_N].T.astype(np.float32)
    return embedding_ND / np.linalg.norm(embedding_ND, axis=1, keepdims=True).clip(1e-6)


EDGE, EDGE_SHARE = 20.0, 1 / 16
"""A box this close to the edge of a crop, in pixels, and in its shorter sides, belongs to an object
that the crop cuts."""

Box = tuple[float, float, float, float]


def is_cut(box: Box, crop: Crop) -> bool:
    """Return whether a box of the picture ends at an edge of the crop inside the picture."""
    edges = np.array([crop.x, crop.y, crop.x + crop.width, crop.y + crop.height])
    ends = np.array([0, 0, crop.picture_width, crop.picture_height])
    near = min(EDGE, EDGE_SHARE * min(crop.height, crop.width))
    at_edge = np.abs(np.subtract(box, edges)) <= near
    at_end = np.abs(np.subtract(box, ends)) <= near
    return bool((at_edge & ~at_end).any())


MAX_IOU = 0.7
"""Of two masks or boxes that overlap more, only the better one is kept; SAM's value for boxes."""

Overlap = Callable[[int, NDArray[np.intp]], NDArray[np.floating]]
"""Returns the IoU of one item with each of several."""


def not_suppressed(
    overlap: Overlap, quality_M: ArrayLike, max_iou: float = MAX_IOU
) -> Iterator[int]:
    """Yield the indices of the items that no better kept item overlaps, best first.

    Of equally good ones, the first counts as better.
    """
    left_M = np.argsort(-np.asarray(quality_M, np.float64), kind="stable")
    while len(left_M):
        best, left_M = int(left_M[0]), left_M[1:]
        yield best
        left_M = left_M[overlap(best, left_M) <= max_iou]


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
