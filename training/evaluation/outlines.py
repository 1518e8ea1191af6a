"""Fit the numbers of a calibration that need outlined things with names.

``min_label_score`` is the share that best tells right from wrong names of masks. ``text_weight`` is
that of a name beside a photograph which lacks it, in a search for photographs that hold the name
and one of the photograph's own.

P photographs, N names, M things, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from samclip_core.answers.areas import Area, combine, embed_areas
from samclip_core.answers.zero_shot import softmax
from samclip_core.calibration import Calibration
from samclip_core.model import SamClip
from samclip_core.types import ImageFeatures
from training.data.annotations import compressed, decoded
from training.data.sample import Sample, reading
from training.evaluation.measures import mean_precision, ratio_figures
from training.evaluation.suite import Metrics

LEAST = (0.0, *np.arange(0.05, 0.95, 0.05).round(2).tolist())
WEIGHTS = (1.0, 1.5, 2.0, 3.0, 0.5)  # of several that are equally good, the first


@dataclass(frozen=True, eq=False)
class NamedThings:
    """A photograph's vector and names, and its outlined things.

    Of each thing its vector, its share of the photograph, the index of its name (-1: none of them),
    and the index and the share of the likeliest name.
    """

    vector_D: NDArray[np.float32]
    holds_N: NDArray[np.bool_]
    thing_MD: NDArray[np.float32]
    area_M: NDArray[np.float64]
    name_M: NDArray[np.intp]
    likeliest_M: NDArray[np.intp]
    share_M: NDArray[np.float32]

    @classmethod
    def of(
        cls,
        model: SamClip,
        features: ImageFeatures,
        sample: Sample,
        names: Sequence[str],
        vector_D: NDArray[np.float32],
    ) -> Self:
        """Take the vectors of a photograph's things; there may be none."""
        things = outlined_things(sample)
        masks = decoded([thing["segmentation"] for thing in things])
        vectors = [*embed_areas(features, map(Area.of_mask, masks))]
        thing_MD = np.array(vectors, np.float32).reshape(-1, len(vector_D))
        text_ND = model.embed_labels(names)
        share_MN = softmax(model.config.logit_scale * (thing_MD @ text_ND.T), axis=1)
        index = {name: number for number, name in enumerate(names)}
        name_M = np.array([index.get(thing["category"], -1) for thing in things], np.intp)
        return cls(
            vector_D,
            np.isin(np.arange(len(names)), name_M),
            thing_MD,
            np.array([mask_HW.mean() for mask_HW in masks]),
            name_M,
            share_MN.argmax(axis=1),
            share_MN.max(axis=1),
        )

    @property
    def right_M(self) -> NDArray[np.bool_]:
        """Whether the likeliest name of each thing is its own."""
        return self.likeliest_M == self.name_M


def measured(
    calibration: Calibration, photos: Sequence[NamedThings], text_ND: NDArray[np.float32]
) -> Metrics:
    """Return how well the numbers do, beside neutral ones, with counts and 95 % intervals.

    Nothing without photographs, each of which has things.
    """
    if not photos:
        return {}
    things_P = np.array([len(photo.right_M) for photo in photos])
    figures: Metrics = {"things_photographs": len(things_P), "things": int(things_P.sum())}
    for way, least in {"": calibration.min_label_score, "_without_min_score": 0.0}.items():
        for kind, wanted in {"right": True, "wrong": False}.items():
            named_P = [
                ((photo.share_M >= least) & (photo.right_M == wanted)).sum() for photo in photos
            ]
            figures |= ratio_figures(f"things_named_{kind}{way}", np.array(named_P), things_P)
    for way, weight in {"": calibration.text_weight, "_at_weight_1": 1.0}.items():
        total_P, queries_P = composed(photos, text_ND, weight)
        asked_P = queries_P > 0
        if asked_P.any():
            name = f"photograph_with_text_map{way}"
            figures |= ratio_figures(name, total_P[asked_P], queries_P[asked_P])
            figures["photograph_with_text_queries"] = int(queries_P.sum())
    return figures


def text_weight(photos: Sequence[NamedThings], text_ND: NDArray[np.float32]) -> float | None:
    """Return the weight with the highest mean average precision; None without any query."""
    figures = []
    for weight in WEIGHTS if photos else ():
        total_P, queries_P = composed(photos, text_ND, weight)
        if queries_P.any():
            figures.append(total_P.sum() / queries_P.sum())
    return WEIGHTS[int(np.argmax(figures))] if figures else None


def least_share(photos: Sequence[NamedThings]) -> float:
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
    photos: Sequence[NamedThings], text_ND: NDArray[np.float32], weight: float
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
