"""Measures: IoU of masks and of classes, shares of things, their intervals, ranks in retrieval.

Intervals are 95 % percentile bootstrap intervals: photographs are drawn with replacement, with a
fixed seed.

C classes, N photographs, R resamples, T texts, B images, H×W pixels.
"""

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from training.evaluation.suite import Metrics

RESAMPLES = 1000
PERCENTILES = (2.5, 97.5)
_AT_ONCE = 100  # resamples of counts per class, to bound memory


def iou(a_HW: NDArray[np.bool_], b_HW: NDArray[np.bool_]) -> float:
    """Return intersection over union; 0 for two empty masks."""
    return float((a_HW & b_HW).sum() / max(1, (a_HW | b_HW).sum()))


def depth(part_HW: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return each pixel's distance to the edge of the part or the image, 0 outside the part."""
    padded = np.pad(part_HW, 1).astype(np.uint8)
    return np.asarray(cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1])


def centre(mask_HW: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the centre of the pixel furthest from the edges of the mask and the image."""
    y, x = np.unravel_index(depth(mask_HW).argmax(), mask_HW.shape)
    return float(x) + 0.5, float(y) + 0.5


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


def semantic_figures(name: str, pixels_N3C: Sequence[NDArray[np.int64]]) -> Metrics:
    """Return the figures of one set, given the pixel counts of each photograph.

    ``NAME_miou`` is over the classes in the ground truth, and ``_low`` and ``_high`` are its 95 %
    interval; ``NAME_miou_union`` is over the classes with a union above 0. ``NAME_classes``,
    ``NAME_classes_union`` and ``NAME_photographs`` are counts. Raises ValueError without
    labelled pixels.
    """
    stacked_N3C = np.array(pixels_N3C)
    if not stacked_N3C.any():
        raise ValueError(f"{name}: no labelled pixels in {len(stacked_N3C)} photographs")
    total_3C = stacked_N3C.sum(axis=0)
    low, high = miou_interval(stacked_N3C)
    return {
        f"{name}_miou": mean_iou(total_3C),
        f"{name}_miou_low": low,
        f"{name}_miou_high": high,
        f"{name}_miou_union": mean_iou(total_3C, "union"),
        f"{name}_classes": int(np.isfinite(class_iou(total_3C, "truth")).sum()),
        f"{name}_classes_union": int(np.isfinite(class_iou(total_3C)).sum()),
        f"{name}_photographs": len(stacked_N3C),
    }


def miou_interval(
    pixels_N3C: NDArray[np.int64], less_N3C: NDArray[np.int64] | None = None
) -> tuple[float, float]:
    """Return the interval of the mean IoU over the classes in the truth.

    With ``less``, the counts of another answer to the same photographs: of the difference.
    """
    count = len(pixels_N3C)
    random = np.random.default_rng(0)
    answers = [counts for counts in (pixels_N3C, less_N3C) if counts is not None]
    flat = [counts.reshape(count, -1).astype(np.float64) for counts in answers]  # exact to 2^53
    means = []
    for _ in range(RESAMPLES // _AT_ONCE):
        drawn_RN = random.multinomial(count, np.full(count, 1 / count), size=_AT_ONCE)
        means.append([_means((drawn_RN @ f).reshape(-1, *pixels_N3C.shape[1:])) for f in flat])
    mean, *other = np.concatenate(means, axis=1)
    low, high = np.percentile(mean - other[0] if other else mean, PERCENTILES)
    return float(low), float(high)


def _means(total_R3C: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each resample's mean IoU, without resamples of unlabelled photographs."""
    iou_RC = class_iou(total_R3C, "truth")
    return np.nanmean(iou_RC[np.isfinite(iou_RC).any(axis=1)], axis=1)


def resampled(count: int, resamples: int = RESAMPLES) -> NDArray[np.int64]:
    """Return how often each of N photographs is drawn in each resample, R×N."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), resamples)


def ratio_figures(
    name: str, part_N: NDArray[np.number], whole_N: NDArray[np.number], resamples: int = RESAMPLES
) -> Metrics:
    """Return Σ ``part_N`` / Σ ``whole_N`` as ``NAME``; ``_low`` and ``_high``: its interval.

    Nothing if the whole is empty. Resamples in which it is do not count.
    """
    if not whole_N.any():
        return {}
    drawn_RN = resampled(len(part_N), resamples)
    drawn_RN = drawn_RN[drawn_RN @ (whole_N > 0) > 0]
    low, high = np.percentile((drawn_RN @ part_N) / (drawn_RN @ whole_N), PERCENTILES)
    share = float(part_N.sum() / whole_N.sum())
    return {name: share, f"{name}_low": float(low), f"{name}_high": float(high)}


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


def mean_precision(hits_B: NDArray[np.bool_]) -> float:
    """Return the mean precision at the wanted images of a ranking, of which there is one."""
    precision_B = hits_B.cumsum() / np.arange(1, len(hits_B) + 1)
    return float(precision_B[hits_B].mean())
