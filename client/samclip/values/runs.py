"""Masks as runs of pixels, and COCO's compressed counts of them. K runs, N characters."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Box = tuple[int, int, int, int]  # x_min, y_min, x_max, y_max; the last two are exclusive
_MAX_DIGITS = 7  # of five bits, after the first one


@dataclass(frozen=True, eq=False)
class Runs:
    """A mask of ``height``×``width`` as runs of set pixels in column-major order.

    ``start_K`` and ``end_K`` (exclusive) are offsets in pixels from the top-left corner.
    """

    start_K: NDArray[np.intp]
    end_K: NDArray[np.intp]
    height: int
    width: int

    @property
    def area(self) -> int:
        """Number of set pixels."""
        return int((self.end_K - self.start_K).sum())

    @property
    def box(self) -> Box:
        """(x_min, y_min, x_max, y_max) in whole pixels, as ``pixel_box`` returns it."""
        if not len(self.start_K):
            return (0, 0, 0, 0)
        last_K = self.end_K - 1
        column_K, last_column_K = self.start_K // self.height, last_K // self.height
        across = column_K != last_column_K  # runs that touch both the bottom and the top edge
        y_min = 0 if across.any() else int((self.start_K % self.height).min())
        y_max = self.height if across.any() else int((last_K % self.height).max()) + 1
        return (int(column_K[0]), y_min, int(last_column_K[-1]) + 1, y_max)

    def pixels_before(self, offsets: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the number of set pixels before each offset."""
        pixels_N = np.append(0, np.cumsum(self.end_K - self.start_K))
        end_N = np.append(0, self.end_K)
        run = np.searchsorted(self.start_K, offsets)  # runs that start before the offset
        return pixels_N[run] - np.maximum(end_N[run] - offsets, 0)


def decode_runs(counts: bytes, height: int, width: int) -> Runs:
    """Decode COCO's compressed RLE counts of any origin; memory depends on their length alone.

    Raises ValueError unless they are well formed and fill the mask exactly: pycocotools writes
    beyond its memory for others. The format: each number is a group of characters (value + 48) of
    five bits, the lowest first; 0x20 is set on all but the last, 0x10 of the last is the sign. From
    the fourth on, a number is the difference from the one two before it.
    """
    code_N = np.frombuffer(counts, np.uint8) - 48
    if not len(code_N) or code_N.max() > 0x3F or code_N[-1] & 0x20:
        raise ValueError("the counts are not COCO's compressed RLE")
    last_K = np.flatnonzero(code_N & 0x20 == 0)
    first_K = np.append(0, last_K[:-1] + 1)
    if (last_K - first_K).max() > _MAX_DIGITS:
        raise ValueError("a count of the RLE is too large")
    place_N = np.arange(len(code_N)) - np.repeat(first_K, last_K - first_K + 1)
    count_K = np.add.reduceat((code_N & 0x1F).astype(np.int64) << 5 * place_N, first_K)
    count_K -= np.where(code_N[last_K] & 0x10, 1 << 5 * (place_N[last_K] + 1), 0)
    count_K[1::2] = count_K[1::2].cumsum()
    count_K[2::2] = count_K[2::2].cumsum()
    bound_K = count_K.cumsum()
    # None is larger than the mask: the sum of larger ones may exceed 64 bits and come out right.
    fits = count_K.min() >= 0 and count_K.max() <= height * width
    if not fits or bound_K[-1] != height * width:
        raise ValueError(f"the counts of the RLE do not fill {width}×{height} pixels")
    end_K = bound_K[1::2]
    return joined(bound_K[::2][: len(end_K)], end_K, height, width)


def decode_pixels(runs: Runs) -> NDArray[np.bool_]:
    """Return the pixels of a mask in the order of its runs, W×H."""
    bounds_K = np.stack([runs.start_K, runs.end_K], axis=1).reshape(-1)
    count_K = np.diff(bounds_K, prepend=0, append=runs.height * runs.width)
    return np.repeat(np.arange(len(count_K)) % 2 == 1, count_K).reshape(runs.width, runs.height)


def joined(start_K: NDArray[np.intp], end_K: NDArray[np.intp], height: int, width: int) -> Runs:
    """Leave out empty runs, and join those between which no pixel lies."""
    filled_K = start_K < end_K
    start_K, end_K = start_K[filled_K], end_K[filled_K]
    apart_K = start_K[1:] > end_K[:-1]
    first_K = np.append(True, apart_K)[: len(start_K)]
    return Runs(start_K[first_K], end_K[np.roll(first_K, -1)], height, width)
