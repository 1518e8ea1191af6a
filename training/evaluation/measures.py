"""Metrics: IoU of masks, confusion of classes, ranks in retrieval.

C classes, T texts, B images, H×W pixels.
"""

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


def confusion(
    truth_HW: NDArray[np.integer], answer_HW: NDArray[np.integer], values: list[int]
) -> NDArray[np.int64]:
    """Count pixels by (true class, predicted class), C×C; other true values are ignored.

    ``truth_HW`` has values, ``answer_HW`` has indices into ``values``.
    """
    row_HW = class_rows(truth_HW, values)
    counted = row_HW >= 0
    cells = row_HW[counted] * len(values) + answer_HW[counted]
    return np.bincount(cells, minlength=len(values) ** 2).reshape(len(values), -1)


def mean_iou(confusion_CC: NDArray[np.int64]) -> float:
    """Return the IoU averaged over the classes that occur in the ground truth."""
    hit_C = np.diag(confusion_CC)
    union_C = confusion_CC.sum(axis=0) + confusion_CC.sum(axis=1) - hit_C
    present_C = confusion_CC.sum(axis=1) > 0
    return float((hit_C[present_C] / union_C[present_C]).mean())


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
