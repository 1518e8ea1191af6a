"""Fit the numbers of a calibration that need outlined things with names.

``min_label_score`` is the share that best tells right from wrong names of masks. ``text_weight`` is
that of a name beside a photograph which lacks it, in a search for photographs that hold the name
and one of the photograph's own. ``search`` asks the fewest points that find as much as SAM's rules.

P photographs, N names, M things, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from samclip_core.answers.areas import Area, combine, embed_areas
from samclip_core.answers.zero_shot import class_embeddings, softmax
from samclip_core.calibration import AdaptiveSearch, Calibration
from samclip_core.model import SamClip
from training.data.annotations import compressed, decoded, regions
from training.data.sample import Sample, reading
from training.evaluation.instances import MATCH, found_overlaps
from training.evaluation.measures import mean_precision, ratio_figures
from training.evaluation.suite import Metrics, limited, progress

LEAST = (0.0, *np.arange(0.05, 0.95, 0.05).round(2).tolist())
WEIGHTS = (1.0, 1.5, 2.0, 3.0, 0.5)  # of several that are equally good, the first
EXPLAINED = (0.5, 0.35, 0.2)
PARTED = 0.85
"""Share of ``explained``: a mask's edge alone does not leave a point unexplained."""
LOWER = 0.05
"""A search that asks fewer points may keep masks whose predicted IoU is smaller by this."""
MIN_AREA = 0.0005
"""Smallest mask, island or hole, as a share of the picture: 12×12 of 640×480 pixels, less than
people outline. ``KEPT`` decides whether a checkpoint finds as much without them."""
KEPT = 0.98
"""Share of the regions found by SAM's rules that fewer points must find."""
SEARCHED = 12
"""Most photographs that are searched, up to four times each: one search asks hundreds of points."""


@dataclass(frozen=True, eq=False)
class ThingNames:
    """A photograph's vector and names; of each thing, the likeliest name's share, and if right."""

    vector_D: NDArray[np.float32]
    holds_N: NDArray[np.bool_]
    share_M: NDArray[np.float32]
    right_M: NDArray[np.bool_]


class Outlined:
    """The photographs of one part of a set whose things have outlines; there may be none."""

    def __init__(self, model: SamClip, samples: Sequence[Sample], names: Sequence[str]) -> None:
        """Encode the photographs; ``names`` are those of the set's things."""
        usable = [sample for sample in samples if outlined_things(sample)]
        text_ND = class_embeddings(model.embed_text, names, model.config.templates)
        self._model, self._names, self._text_ND = model, list(names), text_ND
        self.photos = [self._photo(sample) for sample in progress(usable, "names of outlines")]
        outlined = [(sample.encoded, regions(sample)) for sample in usable]
        self._searched = limited([pair for pair in outlined if pair[1]], SEARCHED)

    def _photo(self, sample: Sample) -> ThingNames:
        things = outlined_things(sample)
        areas = map(Area.of_mask, decoded(thing["segmentation"] for thing in things))
        features = self._model.encode(sample.encoded)
        thing_MD = np.stack([*embed_areas(features, areas)])
        share_MN = softmax(self._model.config.logit_scale * (thing_MD @ self._text_ND.T), axis=1)
        own = [thing["category"] for thing in things]
        likeliest = [self._names[index] for index in share_MN.argmax(axis=1)]
        return ThingNames(
            self._model.embed_image(sample.encoded),
            np.isin(self._names, own),
            share_MN.max(axis=1),
            np.array(likeliest) == own,
        )

    def fit(self, before: Calibration) -> Calibration:
        """Return a calibration with these numbers; those that cannot be fitted stay."""
        if not self.photos:
            return before
        fitted = replace(before, min_label_score=least_share(self.photos))
        if composed(self.photos, self._text_ND, 1.0)[1].any():
            fitted = replace(fitted, text_weight=max(WEIGHTS, key=self._precision))
        return replace(fitted, search=self._fewest_points(before.search))

    def measured(self, calibration: Calibration) -> Metrics:
        """Return how well the numbers do, beside neutral ones, with counts and 95 % intervals."""
        if not self.photos:
            return {}
        things_P = np.array([len(photo.right_M) for photo in self.photos])
        figures: Metrics = {"things_photographs": len(things_P), "things": int(things_P.sum())}
        for way, least in {"": calibration.min_label_score, "_without_min_score": 0.0}.items():
            for kind, wanted in {"right": True, "wrong": False}.items():
                named_P = [
                    ((photo.share_M >= least) & (photo.right_M == wanted)).sum()
                    for photo in self.photos
                ]
                figures |= ratio_figures(f"things_named_{kind}{way}", np.array(named_P), things_P)
        for way, weight in {"": calibration.text_weight, "_at_weight_1": 1.0}.items():
            total_P, queries_P = composed(self.photos, self._text_ND, weight)
            asked_P = queries_P > 0
            if asked_P.any():
                name = f"photograph_with_text_map{way}"
                figures |= ratio_figures(name, total_P[asked_P], queries_P[asked_P])
                figures["photograph_with_text_queries"] = int(queries_P.sum())
        return figures | self._measured_search(calibration.search)

    def _precision(self, weight: float) -> float:
        total_P, queries_P = composed(self.photos, self._text_ND, weight)
        return float(total_P.sum() / queries_P.sum())

    def _measured_search(self, fitted: AdaptiveSearch | None) -> Metrics:
        if not self._searched:
            return {}
        regions_P = np.array([len(rles) for _, rles in self._searched])
        figures: Metrics = {"everything_regions": int(regions_P.sum())}
        for way, search in {"": fitted, "_by_sams_rules": None}.items():
            found_P = self._found(search)
            figures |= ratio_figures(f"everything_recall{way}", found_P, regions_P)
        return figures

    def _fewest_points(self, before: AdaptiveSearch | None) -> AdaptiveSearch | None:
        """Return the search with the fewest points that finds as much as SAM's; None if none.

        Where SAM's rules find nothing, the search stays.
        """
        enough, own = KEPT * self._found(None).sum(), self._model.config.min_predicted_iou
        if not enough:
            return before
        for explained, least in product(EXPLAINED, (own, own - LOWER)):
            search = AdaptiveSearch(
                explained=explained,
                parted=round(PARTED * explained, 3),
                min_predicted_iou=round(max(0.0, least), 3),
                min_area=MIN_AREA,
            )
            if self._found(search).sum() >= enough:
                return search
        return None

    def _found(self, search: AdaptiveSearch | None) -> NDArray[np.int64]:
        """Return the number of regions that a search for everything finds, per photograph."""
        config = self._model.config
        calibration = replace(config.fitted, search=search)
        self._model.config = replace(config, calibration=calibration)
        try:
            return np.array(
                [
                    (found_overlaps(self._model.segment_everything(encoded), rles) >= MATCH).sum()
                    for encoded, rles in progress(self._searched, "everything")
                ]
            )
        finally:
            self._model.config = config


def least_share(photos: Sequence[ThingNames]) -> float:
    """Return the share from which most right and fewest wrong names count; 0 if all are alike."""
    share_K = np.concatenate([photo.share_M for photo in photos])
    right_K = np.concatenate([photo.right_M for photo in photos])
    if right_K.all() or not right_K.any():
        return 0.0

    def kept(least: float) -> float:
        named_K = share_K >= least
        return float(named_K[right_K].mean() - named_K[~right_K].mean())

    return max(LEAST, key=kept)


def composed(
    photos: Sequence[ThingNames], text_ND: NDArray[np.float32], weight: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the sum of the average precisions of each photograph's queries, and their number.

    A query is a photograph and a name that it lacks; wanted are others with that name and one of
    the photograph's own.
    """
    vector_PD = np.stack([photo.vector_D for photo in photos])
    holds_PN = np.stack([photo.holds_N for photo in photos])
    total_P, queries_P = np.zeros(len(photos)), np.zeros(len(photos), np.int64)
    for own, photo in enumerate(photos):
        wanted_PN = holds_PN & (holds_PN & photo.holds_N).any(axis=1, keepdims=True)
        for name in np.flatnonzero(~photo.holds_N & wanted_PN.any(axis=0)):
            query_D = combine(photo.vector_D, text_ND[name], weight)
            order_P = np.argsort(-(vector_PD @ query_D), kind="stable")
            total_P[own] += mean_precision(wanted_PN[order_P[order_P != own], name])
            queries_P[own] += 1
    return total_P, queries_P


def outlined_things(sample: Sample) -> list[dict[str, Any]]:
    """Return a photograph's things that have outlines. Raises BadSample if one cannot be read."""
    things = []
    for thing in sample.info.get("instances") or ():
        if thing.get("segmentation") and not thing.get("iscrowd"):
            with reading(sample.source, sample.key, "an outline is no compressed RLE of COCO"):
                outline = compressed(thing["segmentation"])
            if coco_mask.area(outline):
                things.append(thing | {"segmentation": outline})
    return things
