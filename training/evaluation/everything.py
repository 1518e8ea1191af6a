"""How many outlined regions a search for everything finds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from samclip_core.model import SamClip
from samclip_core.types import EverythingMask, ImageFeatures
from training.data.annotations import encoded, regions
from training.data.sample import Sample
from training.evaluation.batches import scored
from training.evaluation.instances import framed
from training.evaluation.measures import ratio_figures
from training.evaluation.suite import Metrics, Options, own_samples

MOST = 100
"""Only this many masks count, those with the best predicted IoU."""
MATCH = 0.5
"""IoU with which a mask finds a region."""


def own_sets(model: SamClip, options: Options) -> Metrics:
    """Return recall@100 at IoU 0.5 of the outlined regions of two sets, with its 95 % interval."""
    metrics: Metrics = {}
    for source in ("bsds500", "coco_multi"):
        samples = own_samples(options, source, usable=regions)
        name = f"{source}_everything"
        rows = scored(model, options, samples, framed, _counts, name)
        found_N, regions_N, masks_N = np.array(rows).T
        metrics |= ratio_figures(f"{name}_recall", found_N, regions_N)
        metrics |= {f"{name}_regions": int(regions_N.sum()), f"{name}_photographs": len(samples)}
        metrics[f"{name}_masks"] = int(masks_N.sum())
    return metrics


def _counts(
    model: SamClip, batch: Sequence[tuple[Sample, ImageFeatures]]
) -> list[tuple[int, int, int]]:
    """Return how many regions of each photograph are found, how many it has, and the masks."""
    rows = []
    for sample, features in batch:
        answer = model.segment_everything(features)
        overlap_R = overlaps(answer, regions(sample))
        rows.append((int((overlap_R >= MATCH).sum()), len(overlap_R), len(answer)))
    return rows


def overlaps(
    masks: Sequence[EverythingMask], rles: Sequence[dict[str, Any]]
) -> NDArray[np.float64]:
    """Return each region's best IoU with one of the MOST best masks; 0 without masks."""
    best = sorted(masks, key=lambda mask: -mask.predicted_iou)[:MOST]
    if not best:
        return np.zeros(len(rles))
    iou_MR = coco_mask.iou([encoded(m.mask_HW) for m in best], list(rles), [0] * len(rles))
    return np.asarray(iou_MR, np.float64).max(axis=0)
