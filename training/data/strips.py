"""COCO's run-length encoded masks as vertical strips, without ever decoding them to pixels.

A photograph of SA-1B has dozens of masks of its own size, of which a training frame needs a few
thousand cells each. R: strips of a mask.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from samclip_core.io.masks import decode_runs

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Strips(NamedTuple):
    """The vertical strips of a mask: rows ``top_R`` to ``bottom_R`` (exclusive) of ``column_R``."""

    column_R: Integers
    top_R: Integers
    bottom_R: Integers


class Rectangles(NamedTuple):
    """Disjoint rectangles of positive area, in pixels or cells of a frame."""

    left_R: Floats
    top_R: Floats
    right_R: Floats
    bottom_R: Floats

    def box(self) -> tuple[float, float, float, float]:
        """Return the tight box around all rectangles, x0, y0, x1, y1; zeros if there are none."""
        if not len(self.left_R):
            return 0.0, 0.0, 0.0, 0.0
        return self.left_R.min(), self.top_R.min(), self.right_R.max(), self.bottom_R.max()


def strips(rle: dict[str, Any]) -> Strips:
    """Return the strips of a compressed COCO RLE. Raises ValueError if it is damaged."""
    height, width = rle["size"]
    counts = rle["counts"]
    runs = decode_runs(counts.encode() if isinstance(counts, str) else counts, height, width)
    first = runs.start_K // height
    columns = (runs.end_K - 1) // height - first + 1  # a run may continue in the next columns
    run = np.repeat(np.arange(len(first)), columns)
    column_R = first[run] + np.arange(len(run)) - (np.cumsum(columns) - columns)[run]
    top_R = np.maximum(runs.start_K[run] - column_R * height, 0)
    bottom_R = np.minimum(runs.end_K[run] - column_R * height, height)
    return Strips(column_R, top_R, bottom_R)


def coverage(rectangles: Rectangles, cells: int) -> NDArray[np.float32]:
    """Return the exact share of each cell that the rectangles cover, ``share_mm``."""
    left_R, top_R, right_R, bottom_R = rectangles
    share_mm = np.zeros((cells, cells), np.float32)
    if not len(left_R):
        return share_mm
    x0, y0 = int(left_R.min()), int(top_R.min())
    x1, y1 = int(np.ceil(right_R.max())), int(np.ceil(bottom_R.max()))
    width, height = x1 - x0 + 2, y1 - y0 + 2
    column_4R, across_4R = _steps(left_R - x0, right_R - x0)
    row_4R, down_4R = _steps(top_R - y0, bottom_R - y0)
    place_44R = row_4R[:, None] * width + column_4R
    weight_44R = down_4R[:, None] * across_4R
    sums = np.bincount(place_44R.ravel(), weight_44R.ravel(), height * width)
    sums_hw = sums.reshape(height, width)[::-1, ::-1].cumsum(0).cumsum(1)[::-1, ::-1]
    share_mm[y0:y1, x0:x1] = sums_hw[1:-1, 1:-1]
    return share_mm


def _steps(low_R: Floats, high_R: Floats) -> tuple[Integers, Floats]:
    """Return ``index_4R`` and ``weight_4R`` of four steps per interval.

    The sum of the steps after index i is the interval's share of cell i.
    """
    ends_2R = np.stack([high_R, low_R])
    index_2R = ends_2R.astype(np.int64)
    part_2R = ends_2R - index_2R
    sign_21 = np.array([[1.0], [-1.0]])
    index_4R = np.concatenate([index_2R, index_2R + 1])
    return index_4R, np.concatenate([sign_21 * (1 - part_2R), sign_21 * part_2R])
