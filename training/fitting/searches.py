"""Choose the search for regions: the fewest points that find about as much as any candidate.

All candidates ask points of one grid, so each point is decoded once per photograph.

P photographs, C candidates, R resamples.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.everything import of_regions
from samclip_core.answers.find_regions import FindRegions
from samclip_core.answers.request import NO_TEXTS
from samclip_core.answers.steps import Terms, run
from samclip_core.calibration import AdaptiveSearch
from samclip_core.model import PROMPTS_AT_ONCE, SamClip
from samclip_core.types import ImageFeatures, MaskSet, Prompt
from training.data.annotations import regions
from training.data.sample import Sample
from training.evaluation.instances import MATCH, found_overlaps
from training.evaluation.measures import PERCENTILES, ratio_figures, resampled
from training.evaluation.parallel import progress
from training.evaluation.suite import Metrics

EXPLAINED = (0.5, 0.35, 0.2)
PARTED = 0.85
"""Share of ``explained``: a mask's edge alone does not leave a point unexplained."""
LOWER = 0.05
"""A search that asks fewer points may keep masks whose predicted IoU is smaller by this."""
MIN_AREA = 0.0005
"""Smallest mask, island or hole, as a share of the picture: 12×12 of 640×480 pixels, less than
people outline."""
LOSS, LEAST_PHOTOGRAPHS = 0.01, 10
"""Most recall that fewer points may cost, and the fewest photographs that can show it."""


class Counts(NamedTuple):
    """Of one set, ``found_PC`` regions with ``points_PC``, and all ``regions_P``."""

    found_PC: NDArray[np.int64]
    points_PC: NDArray[np.int64]
    regions_P: NDArray[np.int64]


class _Decoded:
    """A SAM head for one photograph that keeps its answers to points, and counts the points."""

    def __init__(self, model: SamClip, least_iou: float) -> None:
        """Keep masks with a predicted IoU of at least ``least_iou``; no candidate reads others."""
        self._head, self._least_iou = model.sam_head, least_iou
        self.min_predicted_iou = model.sam_head.min_predicted_iou
        self.min_stability = model.sam_head.min_stability
        self._known = dict[tuple[tuple[float, float], ...], MaskSet]()
        self.points = 0

    def segment(
        self, features: ImageFeatures, prompts: Sequence[Prompt], multimask: bool = True
    ) -> list[MaskSet]:
        self.points += len(prompts)
        new = [prompt for prompt in prompts if prompt.points not in self._known]
        for prompt, masks in zip(
            new, self._head.segment(features, new, multimask) if new else (), strict=True
        ):
            kept_M = masks.predicted_iou_M >= self._least_iou
            self._known[prompt.points] = MaskSet(
                masks.masks_MHW[kept_M],
                masks.predicted_iou_M[kept_M],
                masks.stability_M[kept_M],
                masks.logits_Mhw[kept_M],
            )
        return [self._known[prompt.points] for prompt in prompts]


def candidates(least_iou: float) -> list[AdaptiveSearch | None]:
    """Return the searches to choose from; ``least_iou`` is SAM's own. None: by SAM's rules."""
    return [None] + [
        AdaptiveSearch(
            explained=explained,
            parted=round(PARTED * explained, 3),
            min_predicted_iou=round(max(0.0, least), 3),
            min_area=MIN_AREA,
        )
        for explained, least in product(EXPLAINED, (least_iou, least_iou - LOWER))
    ]


def counts(
    model: SamClip, samples: Sequence[Sample], searches: Sequence[AdaptiveSearch | None]
) -> Counts:
    """Search each photograph by each of the ``searches``. The samples have regions."""
    of_photos = [_searched(model, sample, searches) for sample in progress(samples, "searches")]
    count_PC2 = np.array(of_photos, np.int64).reshape(-1, len(searches), 2)
    regions_P = np.array([len(regions(sample)) for sample in samples], np.int64)
    return Counts(count_PC2[..., 0], count_PC2[..., 1], regions_P)


def _searched(
    model: SamClip, sample: Sample, searches: Sequence[AdaptiveSearch | None]
) -> list[tuple[int, int]]:
    """Return the regions found and the points asked by each search."""
    config, features, found = model.config, model.encode(sample.encoded), []
    head = _Decoded(model, config.min_predicted_iou - LOWER)
    for search in searches:
        own = replace(config, calibration=replace(config.fitted, search=search))
        steps = FindRegions().steps(features, NO_TEXTS, own, Terms.of(head, PROMPTS_AT_ONCE))
        before, packed = head.points, np.frombuffer(run(steps, head).pack(), np.uint8)
        searched = replace(features, regions_N=packed)
        found.append((regions_found(searched, sample), head.points - before))
    return found


def regions_found(features: ImageFeatures, sample: Sample) -> int:
    """Return how many of a photograph's outlined regions the regions of its features find."""
    overlap_R = found_overlaps([*of_regions(features, None)], regions(sample))
    return int((overlap_R >= MATCH).sum())


def fewest_points(sets: Sequence[Counts]) -> int | None:
    """Return the candidate to keep; None if no candidate finds anything.

    The best one has the highest recall, the mean over the sets. Of those whose recall is, with
    97.5 % confidence, at most ``LOSS`` lower, the one that asks the fewest points is kept: few
    photographs show no such thing, and then it is the best one itself. The confidence is that of
    paired differences, over resamples of the photographs of each set.
    """
    if not sets:
        return None
    recall_C = np.mean([one.found_PC.sum(axis=0) / one.regions_P.sum() for one in sets], axis=0)
    if not recall_C.any():
        return None
    recall_RC = np.mean([_resampled_recall(one) for one in sets], axis=0)
    best = int(recall_C.argmax())
    lowest_C = np.percentile(recall_RC - recall_RC[:, [best]], PERCENTILES[0], axis=0)
    points_C = np.mean([one.points_PC.mean(axis=0) for one in sets], axis=0)
    known = sum(len(one.regions_P) for one in sets) >= LEAST_PHOTOGRAPHS
    enough_C = (lowest_C >= -LOSS) & known
    enough_C[best] = True
    return int(np.where(enough_C, points_C, np.inf).argmin())


def _resampled_recall(one: Counts) -> NDArray[np.float64]:
    drawn_RP = resampled(len(one.regions_P))
    return np.asarray(drawn_RP @ one.found_PC / (drawn_RP @ one.regions_P)[:, None])


def fit(
    model: SamClip, sets: Sequence[Sequence[Sample]], before: AdaptiveSearch | None
) -> AdaptiveSearch | None:
    """Return the search for the photographs of several sets; without regions, ``before`` stays."""
    searches = candidates(model.config.min_predicted_iou)
    outlined = [[sample for sample in samples if regions(sample)] for samples in sets]
    chosen = fewest_points([counts(model, samples, searches) for samples in outlined if samples])
    return before if chosen is None else searches[chosen]


def measured(source: str, found_P: Sequence[int], samples: Sequence[Sample]) -> Metrics:
    """Return the recall in the photographs of a set, with its interval; nothing without any."""
    regions_P = np.array([len(regions(sample)) for sample in samples], np.int64)
    name = f"{source}_everything"
    figures = ratio_figures(f"{name}_recall", np.array(found_P, np.int64), regions_P)
    counted = {f"{name}_regions": int(regions_P.sum()), f"{name}_photographs": len(samples)}
    return figures | counted if figures else {}
