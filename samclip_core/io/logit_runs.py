"""The runs of a mask at the picture's size, straight from its low-resolution logits.

Bilinear logits are linear between two rows of the model frame, so their sign changes at most once
there. Finding these crossings takes a tenth of the time of enlarging the mask of a large picture.

Shape letters: h w pixels of the model frame that hold picture, W columns of the original picture.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from samclip_core.geometry import Crop, FloatArray, Geometry
from samclip_core.io.masks import Runs


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
    return _joined(start_K + offset_K, end_K + offset_K, crop.picture_height, crop.picture_width)


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
    column_N, row_N = np.divmod(
        np.flatnonzero(padded_Wh[:, 1:] != padded_Wh[:, :-1]), h + 1
    )  # run starts and ends alternate; a row stands for the gap above it
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


def _joined(start_K: NDArray[np.intp], end_K: NDArray[np.intp], height: int, width: int) -> Runs:
    """Leave out empty runs, and join those between which no pixel lies."""
    filled_K = start_K < end_K
    start_K, end_K = start_K[filled_K], end_K[filled_K]
    apart_K = start_K[1:] > end_K[:-1]
    first_K = np.append(True, apart_K)[: len(start_K)]
    return Runs(start_K[first_K], end_K[np.roll(first_K, -1)], height, width)
