"""The figures of a semantic result: mean IoU by both rules, an interval, and what was counted.

Also the interval of a share of things that several photographs have.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.evaluation.measures import Rule, class_iou, mean_iou
from training.evaluation.suite import Metrics

RESAMPLES = 1000
LEVEL = 0.95
_AT_ONCE = 100  # resamples, to bound memory


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
    low, high = interval(stacked_N3C)
    return {
        f"{name}_miou": mean_iou(total_3C),
        f"{name}_miou_low": low,
        f"{name}_miou_high": high,
        f"{name}_miou_union": mean_iou(total_3C, "union"),
        f"{name}_classes": _counted(total_3C, "truth"),
        f"{name}_classes_union": _counted(total_3C, "union"),
        f"{name}_photographs": len(stacked_N3C),
    }


def _counted(total_3C: NDArray[np.int64], rule: Rule) -> int:
    return int(np.isfinite(class_iou(total_3C, rule)).sum())


def interval(pixels_N3C: NDArray[np.int64]) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean IoU over the classes in the truth.

    Photographs are drawn with replacement, with a fixed seed.
    """
    count = len(pixels_N3C)
    random = np.random.default_rng(0)
    flat_NK = pixels_N3C.reshape(count, -1).astype(np.float64)  # exact below 2^53 pixels
    means = []
    for _ in range(RESAMPLES // _AT_ONCE):
        drawn_RN = random.multinomial(count, np.full(count, 1 / count), size=_AT_ONCE)
        total_R3C = (drawn_RN @ flat_NK).reshape(_AT_ONCE, *pixels_N3C.shape[1:])
        iou_RC = class_iou(total_R3C, "truth")
        iou_RC = iou_RC[np.isfinite(iou_RC).any(axis=1)]  # without those of unlabelled photographs
        means.append(np.nanmean(iou_RC, axis=1))
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return float(low), float(high)


def ratio_interval(part_N: NDArray[np.int64], whole_N: NDArray[np.int64]) -> tuple[float, float]:
    """Return the percentile bootstrap interval of Σ ``part_N`` / Σ ``whole_N`` over photographs."""
    count = len(part_N)
    random = np.random.default_rng(0)
    drawn_RN = random.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    ratio_R = (drawn_RN @ part_N) / np.maximum(drawn_RN @ whole_N, 1)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(ratio_R, [tail, 100 - tail])
    return float(low), float(high)
