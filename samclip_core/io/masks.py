"""Mask codecs: lossless conversion between bool H×W arrays, runs and the wire encodings.

The runs of a mask at the picture's size come straight from its low-resolution logits. Bilinear
logits are linear between two rows of the model frame, so their sign changes at most once there.
Finding these crossings takes a tenth of the time of enlarging the mask of a large picture.

Shape letters: h w pixels of the model frame that hold picture, H W those of the picture, K runs.
"""

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco
from samclip.values.runs import Box as Box
from samclip.values.runs import Runs as Runs
from samclip.values.runs import decode_pixels as decode_pixels
from samclip.values.runs import decode_runs as decode_runs
from samclip.values.runs import joined

from samclip_core.geometry import Crop, FloatArray, Geometry

BoolMask = NDArray[np.bool_]

_FAST_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1]
_MAX_LABELS_8_BIT = 254


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
    # A run at the bottom of a column and one at the top of the next column are the same run.
    return joined(bounds_K[::2], bounds_K[1::2], height, width)


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


def runs_of_logits(geometry: Geometry, logits_hw: FloatArray, crop: Crop | None = None) -> Runs:
    """Return the runs of ``geometry.masks_to_original`` of one square map of logits.

    A pixel whose logit is zero but for rounding may differ. With ``crop``, ``geometry`` is that of
    the crop, and the runs are those of the whole picture.
    """
    frame_hw = geometry.logits_to_frame(logits_hw)
    first, columns_Wh = _columns(frame_hw > 0, frame_hw, geometry.width)
    start_K, end_K, column_K = _crossings(columns_Wh, geometry.height)
    if crop is None:
        crop = Crop(0, 0, geometry.height, geometry.width, geometry.height, geometry.width)
    offset_K = (first + column_K + crop.x) * crop.picture_height + crop.y
    return joined(start_K + offset_K, end_K + offset_K, crop.picture_height, crop.picture_width)


def _columns(
    inside_hw: NDArray[np.bool_], frame_hw: NDArray[np.float32], width: int
) -> tuple[int, NDArray[np.float32]]:
    """Interpolate the columns of the original that may hold mask; return the first one's index."""
    w = frame_hw.shape[1]
    x_W = ((np.arange(width) + 0.5) * (w / width) - 0.5).clip(0, w - 1)
    left_W = np.minimum(x_W.astype(np.intp), max(0, w - 2))
    right_W = np.minimum(left_W + 1, w - 1)
    any_w = np.logical_or.reduce(inside_hw, axis=0)
    holds_W = any_w[left_W] | any_w[right_W]
    if not holds_W.any():
        return 0, np.empty((0, len(frame_hw)), np.float32)
    first, last = int(holds_W.argmax()), width - int(holds_W[::-1].argmax())
    left_W, right_W = left_W[first:last], right_W[first:last]
    share_W1 = (x_W[first:last] - left_W).astype(np.float32)[:, None]
    frame_wh = np.ascontiguousarray(cv2.transpose(frame_hw))
    left_Wh, right_Wh = frame_wh[left_W], frame_wh[right_W]
    return first, left_Wh + share_W1 * (right_Wh - left_Wh)


def _crossings(
    columns_Wh: NDArray[np.float32], height: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Return the first and last-plus-one pixel of each run of a column, and its column."""
    width, h = columns_Wh.shape
    padded_Wh = np.zeros((width, h + 2), np.bool_)
    padded_Wh[:, 1:-1] = columns_Wh > 0
    changes = np.flatnonzero(padded_Wh[:, 1:] != padded_Wh[:, :-1])
    # Run starts and ends alternate; a row stands for the gap above it.
    column_N, row_N = np.divmod(changes, h + 1)
    above_N = columns_Wh[column_N, (row_N - 1).clip(0)].astype(np.float64)
    below_N = columns_Wh[column_N, row_N.clip(0, h - 1)].astype(np.float64)
    apart_N = np.where(above_N == below_N, 1, above_N - below_N)
    y_N = row_N - 1 + above_N / apart_N  # where the logit is zero, in rows of the frame
    pixel_N = (y_N + 0.5) * (height / h) - 0.5
    pixel_N = np.where(row_N == 0, -1, np.where(row_N == h, height, pixel_N))
    start_K, end_K = np.floor(pixel_N[::2]) + 1, np.ceil(pixel_N[1::2])
    return (
        start_K.clip(0, height).astype(np.intp),
        end_K.clip(0, height).astype(np.intp),
        column_N[::2],
    )
