"""Metrics: IoU of masks and of classes, ranks in retrieval.

C classes, N photographs, T texts, B images, H×W pixels.
"""

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray


def iou(a_HW: NDArray[np.bool_], b_HW: NDArray[np.bool_]) -> float:
    """Return intersection over union; 0 for two empty masks."""
    return float((a_HW & b_HW).sum() / max(1, (a_HW | b_HW).sum()))


def box_around(mask_HW: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """Return (x_min, y_min, x_max, y_max) in pixels; the maxima are one past the last pixel."""
    y, x = np.nonzero(mask_HW)
    return float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1)


def centre(mask_HW: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the centre of the pixel furthest from the edges of the mask and the image."""
    distance = cv2.distanceTransform(np.pad(mask_HW, 1).astype(np.uint8), cv2.DIST_L2, 5)
    y, x = np.unravel_index(distance.argmax(), distance.shape)
    return float(x) - 0.5, float(y) - 0.5


def class_rows(labels_HW: NDArray[np.integer], values: list[int]) -> NDArray[np.integer]:
    """Return each pixel's index in ``values``; -1 for other values."""
    index = np.full(int(max(labels_HW.max(), *values)) + 1, -1)
    index[values] = np.arange(len(values))
    return index[labels_HW]


Rule = Literal["truth", "union"]
"""The classes that a mean IoU is over: those in the ground truth, or those with a union above 0.

The second also counts classes that are only predicted, with an IoU of 0, as mmsegmentation does.
"""


def class_pixels(
    truth_HW: NDArray[np.integer], answer_HW: NDArray[np.integer], values: list[int]
) -> NDArray[np.int64]:
    """Count each class's right, true and predicted pixels, 3×C; other true values are ignored.

    ``truth_HW`` has values, ``answer_HW`` has indices into ``values``.
    """
    row_HW = class_rows(truth_HW, values)
    counted_HW = row_HW >= 0
    true_P, answer_P = row_HW[counted_HW], answer_HW[counted_HW]
    parts = true_P[true_P == answer_P], true_P, answer_P
    return np.stack([np.bincount(part, minlength=len(values)) for part in parts])


def class_iou(pixels_3C: NDArray[np.number], rule: Rule = "union") -> NDArray[np.float64]:
    """Return the IoU of each class, NaN for a class that the rule leaves out; …×3×C to …×C."""
    right_C, true_C, predicted_C = np.moveaxis(pixels_3C, -2, 0)
    union_C = true_C + predicted_C - right_C
    counted_C = (true_C if rule == "truth" else union_C) > 0
    return np.divide(right_C, union_C, out=np.full(union_C.shape, np.nan), where=counted_C)


def mean_iou(pixels_3C: NDArray[np.number], rule: Rule = "truth") -> float:
    """Return the IoU averaged over the classes that the rule counts."""
    return float(np.nanmean(class_iou(pixels_3C, rule)))


def ranks(
    similarity_TB: NDArray[np.floating], image_T: NDArray[np.integer]
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Return each text's rank of its image, and each image's rank of its best text, from 0.

    ``image_T`` is the index of each text's image. Ties count as errors, so that constant
    similarities do not score.
    """
    own_T = similarity_TB[np.arange(len(image_T)), image_T]
    text_rank_T = (similarity_TB >= own_T[:, None]).sum(axis=1) - 1
    own_TB = image_T[:, None] == np.arange(similarity_TB.shape[1])
    best_B = np.where(own_TB, similarity_TB, -np.inf).max(axis=0)
    image_rank_B = ((similarity_TB >= best_B) & ~own_TB).sum(axis=0)
    return text_rank_T, image_rank_B
