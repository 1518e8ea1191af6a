"""Mask codecs: lossless conversion between bool H×W arrays and the wire encodings."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

BoolMask = NDArray[np.bool_]
Box = tuple[int, int, int, int]  # x_min, y_min, x_max, y_max; the last two are exclusive

_FAST_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1]
_MAX_LABELS_8_BIT = 254
_MAX_RLE_DIGITS = 7  # of five bits, after the first one


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


class LabelRuns:
    """The runs of all labels in a label map, found in one pass for any number of labels.

    ``label_map_HW`` has label indices, and -1 for no label.
    """

    def __init__(self, label_map_HW: NDArray[np.integer]):
        self._height, self._width = label_map_HW.shape
        down_N = cv2.transpose(label_map_HW).reshape(-1)
        start_K = np.append(0, np.flatnonzero(down_N[1:] != down_N[:-1]) + 1)
        end_K = np.append(start_K[1:], len(down_N))
        label_K = down_N[start_K]
        order_K = np.argsort(label_K, kind="stable")
        self._label_K = label_K[order_K]
        self._start_K, self._end_K = start_K[order_K], end_K[order_K]

    def of(self, label: int) -> Runs:
        """Return the runs of one label."""
        first, last = np.searchsorted(self._label_K, [label, label + 1])
        own = slice(first, last)
        return Runs(self._start_K[own], self._end_K[own], self._height, self._width)


def encode_rle(mask_HW: BoolMask) -> bytes:
    """Encode a mask as COCO's compressed RLE counts, column-major, as pycocotools does."""
    return encode_runs(find_runs(mask_HW))


def encode_runs(runs: Runs) -> bytes:
    """Encode the runs of a mask as ``encode_rle`` does."""
    size = runs.height * runs.width
    bounds_K = np.stack([runs.start_K, runs.end_K], axis=1).reshape(-1)
    count_K = np.diff(bounds_K, prepend=0, append=size)
    if len(count_K) > 1 and not count_K[-1]:  # the last pixel is set
        count_K = count_K[:-1]
    rle = coco.frPyObjects(
        {"size": [runs.height, runs.width], "counts": count_K}, runs.height, runs.width
    )
    return bytes(rle["counts"])


def find_runs(mask_HW: BoolMask) -> Runs:
    """Find the runs of a mask, only within its box: a small object in a large image is cheap."""
    height, width = mask_HW.shape
    x_min, y_min, x_max, y_max = pixel_box(mask_HW)
    crop_hw = np.ascontiguousarray(mask_HW[y_min:y_max, x_min:x_max]).view(np.uint8)
    padded_wh = np.zeros((x_max - x_min, y_max - y_min + 2), np.uint8)  # columns as rows
    if crop_hw.size:  # OpenCV rejects empty arrays
        padded_wh[:, 1:-1] = cv2.transpose(crop_hw)
    changes = np.flatnonzero(padded_wh[:, 1:] != padded_wh[:, :-1])  # start and end alternate
    column_K, row_K = np.divmod(changes, y_max - y_min + 1)
    bounds_K = (x_min + column_K) * height + y_min + row_K
    start_K, end_K = bounds_K[::2], bounds_K[1::2]
    # A run at the bottom of a column and one at the top of the next column are the same run.
    apart_K = start_K[1:] != end_K[:-1]
    first_K = np.append(True, apart_K)[: len(start_K)]
    return Runs(start_K[first_K], end_K[np.roll(first_K, -1)], height, width)


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
    if (last_K - first_K).max() > _MAX_RLE_DIGITS:
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
    start_K = bound_K[::2][: len(end_K)]
    filled_K = start_K < end_K
    return Runs(start_K[filled_K], end_K[filled_K], height, width)


def encode_png(mask_HW: BoolMask) -> bytes:
    """Encode a mask as a one-channel 8-bit PNG file, 255 inside and 0 outside."""
    return write_png(mask_HW.astype(np.uint8) * 255)


def mask_box(mask_HW: BoolMask) -> tuple[float, float, float, float]:
    """Return (x_min, y_min, x_max, y_max) along the mask's pixel edges; zeros if it is empty."""
    x_min, y_min, x_max, y_max = pixel_box(mask_HW)
    return (float(x_min), float(y_min), float(x_max), float(y_max))


def pixel_box(mask_HW: BoolMask) -> Box:
    """Return ``mask_box`` as integers, for slicing."""
    x_N, y_N = np.flatnonzero(mask_HW.any(axis=0)), np.flatnonzero(mask_HW.any(axis=1))
    if not len(x_N):
        return (0, 0, 0, 0)
    return (int(x_N[0]), int(y_N[0]), int(x_N[-1]) + 1, int(y_N[-1]) + 1)


def encode_label_map(label_map_HW: NDArray[np.integer], labels: int) -> bytes:
    """Encode indices into ``labels`` labels, -1 for background, as a one-channel PNG file.

    8-bit up to 254 labels, else 16-bit; the type's largest value is background.
    """
    dtype = np.uint8 if labels <= _MAX_LABELS_8_BIT else np.uint16
    background = np.iinfo(dtype).max
    if labels > background:
        raise ValueError(f"{labels} labels do not fit a 16-bit label map")
    return write_png(label_map_HW.astype(dtype))  # -1 wraps around to the largest value


def decode_label_map(encoded: bytes) -> NDArray[np.int32]:
    """Decode a label map's PNG file to int32 indices, -1 for background.

    Raises ValueError if it is not a one-channel PNG file.
    """
    values_HW = read_png(encoded)
    labels_HW = values_HW.astype(np.int32)
    labels_HW[values_HW == np.iinfo(values_HW.dtype).max] = -1
    return labels_HW


def write_png(values_HW: NDArray[np.unsignedinteger]) -> bytes:
    """Encode uint8 or uint16 values as a one-channel PNG file."""
    return cv2.imencode(".png", values_HW, _FAST_PNG)[1].tobytes()


def read_png(encoded: bytes) -> NDArray[np.unsignedinteger]:
    """Decode a one-channel PNG file to its values. Raises ValueError if it is not one."""
    values = None
    if encoded.startswith(b"\x89PNG"):
        values = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.ndim != 2:
        raise ValueError("expected a PNG file with one channel")
    return np.asarray(values)
