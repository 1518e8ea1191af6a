"""How many outlined regions a search for everything finds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from samclip_core.model import SamClip
from samclip_core.types import EverythingMask
from training.data.annotations import regions
from training.evaluation.overlap import LEVEL, RESAMPLES
from training.evaluation.suite import Metrics, Options, own_samples, progress

MOST = 100
"""Only this many masks count, those with the best predicted IoU."""
MATCH = 0.5
"""IoU with which a mask finds a region."""


def own_sets(model: SamClip, options: Options) -> Metrics:
    """Return recall@100 at IoU 0.5 of the outlined regions of two sets, with its 95 % interval."""
    metrics: Metrics = {}
    for source in ("bsds500", "coco_multi"):
        found, masks = [], 0
        samples = own_samples(options, source, usable=regions)
        for sample in progress(samples, f"everything {source}"):
            answer = model.segment_everything(sample.encoded)
            found.append(overlaps(answer, regions(sample)) >= MATCH)
            masks += len(answer)
        metrics |= _figures(f"{source}_everything", found)
        metrics[f"{source}_everything_masks"] = masks
    return metrics


def overlaps(
    masks: Sequence[EverythingMask], rles: Sequence[dict[str, Any]]
) -> NDArray[np.float64]:
    """Return each region's best IoU with one of the MOST best masks; 0 without masks."""
    best = sorted(masks, key=lambda mask: -mask.predicted_iou)[:MOST]
    encoded = [coco_mask.encode(np.asfortranarray(mask.mask_HW, np.uint8)) for mask in best]
    if not encoded:
        return np.zeros(len(rles))
    iou_MR = coco_mask.iou(encoded, list(rles), [0] * len(rles))
    return np.asarray(iou_MR, np.float64).max(axis=0)


def _figures(name: str, found: Sequence[NDArray[np.bool_]]) -> Metrics:
    """Return the share of found regions, its bootstrap interval over photographs, and counts."""
    found_N = np.array([each.sum() for each in found], np.float64)
    regions_N = np.array([len(each) for each in found], np.float64)
    count = len(found)
    drawn_RN = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    recall_R = (drawn_RN @ found_N) / (drawn_RN @ regions_N)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(recall_R, [tail, 100 - tail])
    return {
        f"{name}_recall": float(found_N.sum() / regions_N.sum()),
        f"{name}_recall_low": float(low),
        f"{name}_recall_high": float(high),
        f"{name}_regions": int(regions_N.sum()),
        f"{name}_photographs": count,
    }
