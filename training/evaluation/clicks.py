"""Clicks per object (NoC), the field's measure of interactive segmentation.

The first click is the centre of the object, each later one the centre of the largest error: the
pixel farthest from the edge of a missing or a surplus part. NoC@85 is the mean number of clicks
until the IoU is 0.85, CLICKS for objects that never are. The rules are RITM's (arXiv 2102.06583).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from samclip_core.model import SamClip
from samclip_core.types import ImageFeatures, Prompt
from training.data.annotations import decoded, regions
from training.data.sample import Sample
from training.evaluation.batches import scored
from training.evaluation.instances import framed
from training.evaluation.measures import depth, iou, ratio_figures
from training.evaluation.suite import Metrics, Options, own_samples

CLICKS = 20
OBJECTS = 2  # of one photograph, drawn at random: twenty clicks on each take long
TARGETS = {"85": 0.85, "90": 0.90}
RESAMPLES = 10_000


def own_sets(model: SamClip, options: Options) -> Metrics:
    """Return NoC@85 and NoC@90 on our own sets, with 95 % bootstrap intervals over photographs."""
    metrics: Metrics = {}
    for source in ("coco_multi", "bsds500"):
        samples = own_samples(options, source, usable=regions)
        curves = scored(model, options, samples, framed, _curves, f"clicks {source}")
        objects_N = np.array([len(photograph) for photograph in curves])
        for name, target in TARGETS.items():
            clicks_N = np.array(
                [sum(needed(c, target) for c in photograph) for photograph in curves]
            )
            metrics |= ratio_figures(f"{source}_noc{name}", clicks_N, objects_N, RESAMPLES)
        metrics[f"{source}_objects"] = int(objects_N.sum())
    return metrics


def _curves(
    model: SamClip, batch: Sequence[tuple[Sample, ImageFeatures]]
) -> list[list[list[float]]]:
    return [
        [clicked(model, features, truth) for truth in drawn(decoded(regions(sample)))]
        for sample, features in batch
    ]


def drawn(truths: Sequence[NDArray[np.bool_]]) -> list[NDArray[np.bool_]]:
    """Return up to OBJECTS of the masks, the same in each run."""
    order = np.random.default_rng(len(truths)).permutation(len(truths))
    return [truths[index] for index in order[:OBJECTS]]


def clicked(model: SamClip, features: ImageFeatures, truth_HW: NDArray[np.bool_]) -> list[float]:
    """Return the IoU after each click, up to the first one that reaches all targets.

    Each answer starts from the logits of the last one.
    """
    prompt, overlaps = Prompt(), list[float]()
    mask_HW, free_HW = np.zeros_like(truth_HW), np.ones_like(truth_HW)
    while len(overlaps) < CLICKS and max(overlaps, default=0.0) < max(TARGETS.values()):
        x, y, negative = next_click(mask_HW, truth_HW, free_HW)
        free_HW[y, x] = False
        points, signs = (*prompt.points, (x + 0.5, y + 0.5)), (*prompt.negative, negative)
        prompt = Prompt(points, signs, mask_input_hw=prompt.mask_input_hw)
        (answer,) = model.segment(features, [prompt], multimask=False)
        prompt, mask_HW = replace(prompt, mask_input_hw=answer.logits_Mhw[0]), answer.masks_MHW[0]
        overlaps.append(iou(mask_HW, truth_HW))
    return overlaps


def next_click(
    mask_HW: NDArray[np.bool_], truth_HW: NDArray[np.bool_], free_HW: NDArray[np.bool_]
) -> tuple[int, int, bool]:
    """Return the pixel (x, y) in the centre of the largest error, and whether it is surplus.

    Pixels that are not free have been clicked already.
    """
    missing_HW = depth(truth_HW & ~mask_HW) * free_HW
    surplus_HW = depth(mask_HW & ~truth_HW) * free_HW
    negative = bool(surplus_HW.max() >= missing_HW.max())
    error_HW = surplus_HW if negative else missing_HW
    y, x = np.unravel_index(error_HW.argmax(), error_HW.shape)
    return int(x), int(y), negative


def needed(overlaps: Sequence[float], target: float) -> int:
    """Return the number of the first click that reaches the target, CLICKS if none does."""
    return next((n for n, overlap in enumerate(overlaps, 1) if overlap >= target), CLICKS)
