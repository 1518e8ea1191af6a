"""Masks on our own sets, from boxes and from clicks; which masks find a region.

Centres are clicked as in Segment Anything (section 7.1). Clicks per object (NoC) are the field's
measure of interactive segmentation: the first click is the centre of the object, each later one the
centre of the largest error, the pixel farthest from the edge of a missing or a surplus part. NoC@85
is the mean number of clicks until the IoU is 0.85, CLICKS for objects that never are. The rules are
RITM's (arXiv 2102.06583).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, groupby
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from samclip_core.answers.request import check_has_masks
from samclip_core.answers.sam_head import PROMPTS_PER_CALL
from samclip_core.encoder import Prepared
from samclip_core.io.masks import mask_box
from samclip_core.model import SamClip
from samclip_core.types import EverythingMask, ImageFeatures, MaskSet, Prompt
from training.data.annotations import decoded, encoded, regions
from training.data.sample import Sample
from training.evaluation.measures import centre, depth, iou, ratio_figures
from training.evaluation.suite import Metrics, Options, each, own_samples, scored

SOURCES = ("coco_multi", "bsds500")
THING_AREA = 32 * 32  # pixels; smaller objects cover few cells of the mask grid
CLICKS = 20
OBJECTS = 2  # of one photograph, drawn at random: twenty clicks on each take long
TARGETS = {"85": 0.85, "90": 0.90}
RESAMPLES = 10_000
MOST = 100
"""Of the masks of a search, only this many count, those with the best predicted IoU."""
MATCH = 0.5
"""IoU with which a mask finds a region."""


def framed(model: SamClip, sample: Sample) -> Prepared:
    """Read a photograph into the frame that masks need."""
    return model.prepare(sample.encoded)


class _Overlaps(NamedTuple):
    """The IoU of one photograph's regions from boxes and from points, and of its things."""

    box: list[float]
    point: list[list[float]]
    thing: list[float]


def own_sets(model: SamClip, options: Options) -> Metrics:
    """Return mean IoU of box prompts, and of centre points with the first and the best mask."""
    metrics = {}
    for source in SOURCES:
        samples = own_samples(options, source, usable=regions)
        rows = scored(model, samples, framed, each(_overlaps), f"masks {source}")
        box, point, thing = (list(chain.from_iterable(c)) for c in zip(*rows, strict=True))
        metrics[f"{source}_box_miou"] = float(np.mean(box))
        metrics[f"{source}_point_best_of_3_miou"] = float(np.mean([max(three) for three in point]))
        metrics[f"{source}_point_miou"] = float(np.mean([three[0] for three in point]))
        if thing:
            metrics[f"{source}_things_box_miou"] = float(np.mean(thing))
    return metrics


def _overlaps(model: SamClip, sample: Sample, features: ImageFeatures) -> _Overlaps:
    truths = decoded(regions(sample))
    outlines = decoded(instance["segmentation"] for instance in things(sample))
    return _Overlaps(
        box_overlaps(model, features, truths),
        list(point_overlaps(model, features, truths)),
        box_overlaps(model, features, outlines),
    )


def things(sample: Sample) -> list[dict[str, Any]]:
    """Return coco_multi's countable objects that are large enough to judge."""
    return [
        instance
        for instance in sample.info.get("instances", ())
        if not instance["iscrowd"] and instance["area"] >= THING_AREA
    ]


def box_overlaps(
    model: SamClip, features: ImageFeatures, truths: Sequence[NDArray[np.bool_]]
) -> list[float]:
    """Return the IoU of the single mask for each true mask's own box."""
    prompts = [Prompt(box=mask_box(truth)) for truth in truths]
    masks = (answer.masks_MHW[0] for answer in answers(model, [(features, prompts)], False))
    return [iou(mask, truth) for mask, truth in zip(masks, truths, strict=True)]


def point_overlaps(
    model: SamClip, features: ImageFeatures, truths: Sequence[NDArray[np.bool_]]
) -> Iterator[list[float]]:
    """Yield the IoU of three masks per click on a true mask's centre, most confident first."""
    prompts = [Prompt(points=(centre(truth),)) for truth in truths]
    for answer, truth in zip(answers(model, [(features, prompts)], True), truths, strict=True):
        yield [iou(mask, truth) for mask in answer.masks_MHW]


def answers(
    model: SamClip, asked: Sequence[tuple[ImageFeatures, Sequence[Prompt]]], multimask: bool
) -> Iterator[MaskSet]:
    """Yield the masks of each prompt of some pictures, in order; calls of the decoder are full."""
    check_has_masks(model.config)
    pairs = [(features, prompt) for features, prompts in asked for prompt in prompts]
    for start in range(0, len(pairs), PROMPTS_PER_CALL):
        pictures = groupby(pairs[start : start + PROMPTS_PER_CALL], key=itemgetter(0))
        requests = [(features, [prompt for _, prompt in group]) for features, group in pictures]
        for of_picture in model.sam_head.decode_batch(requests, multimask):
            yield from (logits.enlarge_all() for logits in of_picture)


def clicks(model: SamClip, options: Options) -> Metrics:
    """Return NoC@85 and NoC@90 on our own sets, with 95 % bootstrap intervals over photographs."""
    metrics: Metrics = {}
    for source in SOURCES:
        samples = own_samples(options, source, usable=regions)
        curves = scored(model, samples, framed, each(_curves), f"clicks {source}")
        objects_N = np.array([len(photograph) for photograph in curves])
        for name, target in TARGETS.items():
            clicks_N = np.array(
                [sum(needed(c, target) for c in photograph) for photograph in curves]
            )
            metrics |= ratio_figures(f"{source}_noc{name}", clicks_N, objects_N, RESAMPLES)
        metrics[f"{source}_objects"] = int(objects_N.sum())
    return metrics


def _curves(model: SamClip, sample: Sample, features: ImageFeatures) -> list[list[float]]:
    return [clicked(model, features, truth) for truth in drawn(decoded(regions(sample)))]


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


def found_overlaps(
    masks: Sequence[EverythingMask], rles: Sequence[dict[str, Any]]
) -> NDArray[np.float64]:
    """Return each region's best IoU with one of the MOST best masks; 0 without masks."""
    best = sorted(masks, key=lambda mask: -mask.predicted_iou)[:MOST]
    if not best:
        return np.zeros(len(rles))
    iou_MR = coco_mask.iou([encoded(m.mask_HW) for m in best], list(rles), [0] * len(rles))
    return np.asarray(iou_MR, np.float64).max(axis=0)
