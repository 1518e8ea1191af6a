"""How many outlined regions a search for everything finds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from samclip_core.model import SamClip
from samclip_core.types import EverythingMask
from training.data.annotations import encoded, regions
from training.evaluation.measures import ratio_figures
from training.evaluation.suite import Metrics, Options, own_samples, progress

MOST = 100
"""Only this many masks count, those with the best predicted IoU."""
MATCH = 0.5
"""IoU with which a mask finds a region."""


def own_sets(model: SamClip, options: Options) -> Metrics:
    """Return recall@100 at IoU 0.5 of the outlined regions of two sets, with its 95 % interval."""
    metrics: Metrics = {}
    for source in ("bsds500", "coco_multi"):
        found_N, regions_N, masks = [], [], 0
        samples = own_samples(options, source, usable=regions)
        for sample in progress(samples, f"everything {source}"):
            answer = model.segment_everything(sample.encoded)
            overlap_R = overlaps(answer, regions(sample))
            found_N.append((overlap_R >= MATCH).sum())
            regions_N.append(len(overlap_R))
            masks += len(answer)
        name = f"{source}_everything"
        metrics |= ratio_figures(f"{name}_recall", np.array(found_N), np.array(regions_N))
        metrics |= {f"{name}_regions": sum(regions_N), f"{name}_photographs": len(samples)}
        metrics[f"{name}_masks"] = masks
    return metrics


def overlaps(
    masks: Sequence[EverythingMask], rles: Sequence[dict[str, Any]]
) -> NDArray[np.float64]:
    """Return each region's best IoU with one of the MOST best masks; 0 without masks."""
    best = sorted(masks, key=lambda mask: -mask.predicted_iou)[:MOST]
    if not best:
        return np.zeros(len(rles))
    iou_MR = coco_mask.iou([encoded(m.mask_HW) for m in best], list(rles), [0] * len(rles))
    return np.asarray(iou_MR, np.float64).max(axis=0)
