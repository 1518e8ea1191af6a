"""Objects like an example: in another photograph, in the same one, and refused where none is.

An example is the box of a photograph's largest thing of a name. It is asked in ``OTHERS`` other
photographs of coco_multi that hold things of this name, and in ``OTHERS`` that do not. The largest
``OTHERS`` things of a name are examples in their own photograph, where the other things of the name
are to be found.

R regions, M things of a photograph, K numbers of ``samclip_core.answers.find_alike``.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.examples import Example, Vectors
from samclip_core.answers.find_alike import log_odds, numbers, plain_weights
from samclip_core.answers.things import MAX_COMMON
from samclip_core.calibration import Alike, Likeness
from samclip_core.geometry import Geometry
from samclip_core.io.masks import mask_box
from samclip_core.model import SamClip
from samclip_core.regions import Regions
from samclip_core.types import ImageFeatures, Prompt
from training.data.annotations import decoded
from training.data.sample import Sample
from training.evaluation.instances import things
from training.evaluation.measures import ratio_figures
from training.evaluation.suite import Metrics
from training.fitting.presence import logistic

OTHERS = 4
FITS = 0.5
"""A region fits a thing if their IoU is at least this."""
REFUSED_ACROSS, REFUSED_WITHIN = 9 / 10, 2 / 3
"""Share of the photographs without another thing like the example in which nothing scores as much
as ``min_score``. Who asks for others in the same photograph has mostly seen them."""


@dataclass(frozen=True, eq=False)
class RegionsAndThings:
    """A photograph's regions and things: ``name_M``; ``iou_RM`` of both, and ``common_RM``.

    The latter is the share of the smaller one that both have in common. ``examples`` are the index
    and the vectors of the largest things of each name, ``there`` all names, also those of crowds
    and small things.
    """

    key: str
    regions: Regions
    name_M: NDArray[np.str_]
    iou_RM: NDArray[np.float32]
    common_RM: NDArray[np.float32]
    examples: dict[str, list[tuple[int, Vectors]]]
    there: frozenset[str]


@dataclass(frozen=True, eq=False)
class Asked:
    """An example asked in one photograph: its regions that may be an answer, and which fit."""

    key: str
    regions: Regions
    vectors: Vectors
    allowed_R: NDArray[np.bool_]
    fits_R: NDArray[np.bool_]

    def best(self, rank: Callable[["Asked"], NDArray[np.floating]]) -> tuple[float, bool]:
        """Return the highest rank of a region that may be an answer, and whether it fits."""
        rank_R = np.where(self.allowed_R, rank(self), -np.inf)
        index = int(rank_R.argmax())
        return float(rank_R[index]), bool(self.fits_R[index])


@dataclass(frozen=True, eq=False)
class Questions:
    """Examples in photographs that hold others like it, and in some that do not."""

    held: list[Asked]
    lacking: list[Asked]


def has_outlines(sample: Sample) -> bool:
    instances = sample.info.get("instances") or ()
    return all({"segmentation", "area"} <= thing.keys() for thing in instances) and bool(
        instances and things(sample)
    )


def photo_of(model: SamClip, features: ImageFeatures, sample: Sample) -> RegionsAndThings:
    """Compare a photograph's regions with its things, and take the vectors of its examples."""
    outlined, geometry, regions = things(sample), features.geometry, features.regions
    masks = decoded([thing["segmentation"] for thing in outlined])
    iou_RM, common_RM = _overlaps(geometry, regions, np.array(masks))
    examples: dict[str, list[tuple[int, Vectors]]] = defaultdict(list)
    for index in np.argsort([-thing["area"] for thing in outlined], kind="stable").tolist():
        several = examples[outlined[index]["category"]]
        if len(several) < OTHERS:
            place = Prompt(box=mask_box(masks[index]))
            (vectors,) = model.example_vectors([Example(features, place)])
            several.append((index, vectors))
    return RegionsAndThings(
        sample.key,
        regions,
        np.array([thing["category"] for thing in outlined]),
        iou_RM,
        common_RM,
        dict(examples),
        frozenset(instance["category"] for instance in sample.info["instances"]),
    )


def _overlaps(
    geometry: Geometry, regions: Regions, true_MHW: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the IoU of regions and things, and the share of the smaller one in common."""
    true_MN = true_MHW.reshape(len(true_MHW), -1).astype(np.float32)
    iou_RM = np.empty((len(regions), len(true_MN)), np.float32)
    common_RM = np.empty_like(iou_RM)
    for index in range(len(regions)):
        inside_N = (geometry.logits_to_original(regions.logits(index)) > 0).reshape(-1)
        both_M = true_MN @ inside_N.astype(np.float32)
        area_M, area = true_MN.sum(axis=1), inside_N.sum()
        iou_RM[index] = both_M / np.maximum(area_M + area - both_M, 1)
        common_RM[index] = both_M / np.maximum(np.minimum(area_M, area), 1)
    return iou_RM, common_RM


def across(photos: Sequence[RegionsAndThings]) -> Questions:
    """Ask each example in some photographs that hold its name, and in some that do not."""
    asked = Questions([], [])
    for photo in photos:
        random = np.random.default_rng(list(photo.key.encode()))
        for name, ((_, vectors), *_) in sorted(photo.examples.items()):
            others = [other for other in photos if other is not photo]
            held = [other for other in others if name in other.examples]
            lacking = [other for other in others if name not in other.there]
            for several, into in ((held, asked.held), (lacking, asked.lacking)):
                for index in random.permutation(len(several))[:OTHERS]:
                    other = several[index]
                    fits_R = np.any(other.iou_RM[:, other.name_M == name] >= FITS, axis=1)
                    allowed_R = np.ones(len(fits_R), np.bool_)
                    into.append(Asked(photo.key, other.regions, vectors, allowed_R, fits_R))
    return asked


def within(photos: Sequence[RegionsAndThings]) -> Questions:
    """Ask each example in its own photograph, for others of its name if there are any."""
    asked = Questions([], [])
    for photo in photos:
        for name, several in sorted(photo.examples.items()):
            for own, vectors in several:
                others_M = photo.name_M == name
                others_M[own] = False
                # An answer has no parts of a better mask, here the example's own.
                allowed_R = photo.common_RM[:, own] <= MAX_COMMON
                fits_R = np.any(photo.iou_RM[:, others_M] >= FITS, axis=1)
                if allowed_R.any():
                    question = Asked(photo.key, photo.regions, vectors, allowed_R, fits_R)
                    (asked.held if others_M.any() else asked.lacking).append(question)
    return asked


def fit(photos: Sequence[RegionsAndThings], unseen: Sequence[RegionsAndThings]) -> Alike | None:
    """Fit the weights of examples within and across photographs; None if they hold too little.

    The least scores are fitted to those photographs that the model never saw.
    """
    own = fit_weights(within(photos), within(unseen), REFUSED_WITHIN)
    others = fit_weights(across(photos), across(unseen), REFUSED_ACROSS)
    return Alike(within=own, across=others) if own and others else None


def fit_weights(asked: Questions, unseen: Questions, refused: float) -> Likeness | None:
    """Fit the log-odds that a region fits, and the least score; None if all or none fit."""
    every = [*asked.held, *asked.lacking]
    if not unseen.lacking:
        return None
    fits_M = np.concatenate([question.fits_R[question.allowed_R] for question in every])
    if fits_M.all() or not fits_M.any():
        return None
    rows_MK = np.concatenate([numbers(q.regions, q.vectors)[q.allowed_R] for q in every])
    weights = [round(float(weight), 3) for weight in logistic(rows_MK, fits_M)]
    names = (field.name for field in fields(Likeness))
    fitted = Likeness(**dict(zip(names, [*weights, 0.5], strict=True)))
    least = float(np.quantile([one.best(_by(fitted))[0] for one in unseen.lacking], refused))
    return replace(fitted, min_score=round(1 / (1 + float(np.exp(-least))), 3))


def measured(alike: Alike | None, photos: Sequence[RegionsAndThings]) -> Metrics:
    """Return the figures ``across`` photographs and ``within`` one; None: with plain weights.

    ``top1``: the best region fits, whatever it scores; with ``by_…``, if only cosines ranked it.
    ``found``: where others are, some region scores enough. ``refused``: where none are, none does.
    """
    metrics: Metrics = {"examples_photographs": len(photos)}
    for way, asked in (("across", across(photos)), ("within", within(photos))):
        weights: Likeness | None = getattr(alike, way, None)
        name, least = f"examples_{way}", 0.0
        if weights:
            least = np.log(weights.min_score / (1 - weights.min_score))
        best = [question.best(_by(weights)) for question in asked.held]
        best_lacking = [question.best(_by(weights)) for question in asked.lacking]
        metrics |= _shares(f"{name}_top1", asked.held, [fits for _, fits in best])
        metrics |= _shares(f"{name}_found", asked.held, [odds >= least for odds, _ in best])
        refused = [odds < least for odds, _ in best_lacking]
        metrics |= _shares(f"{name}_refused", asked.lacking, refused)
        metrics |= {f"{name}_held": len(asked.held), f"{name}_lacking": len(asked.lacking)}
        if not asked.held:
            continue
        for cosines, columns in (("clip", [0]), ("sam", [1]), ("both", [0, 1])):
            fits = [question.best(_by_cosines(columns))[1] for question in asked.held]
            metrics[f"{name}_top1_by_{cosines}"] = float(np.mean(fits))
    return metrics


def _by(weights: Likeness | None) -> Callable[[Asked], NDArray[np.floating]]:
    def rank(asked: Asked) -> NDArray[np.floating]:
        own, regions = weights, asked.regions
        if own is None:
            own = plain_weights(regions, asked.vectors, regions.clip_RD, regions.sam_RE)
        return log_odds(own, regions, asked.vectors)

    return rank


def _by_cosines(columns: Sequence[int]) -> Callable[[Asked], NDArray[np.floating]]:
    return lambda asked: numbers(asked.regions, asked.vectors)[:, columns].sum(axis=1)


def _shares(name: str, asked: Sequence[Asked], right: Sequence[bool]) -> Metrics:
    """Return the share that is right, with its interval over the photographs of the examples."""
    if not asked:
        return {}
    _, photo_Q = np.unique([question.key for question in asked], return_inverse=True)
    return ratio_figures(name, np.bincount(photo_Q, right), np.bincount(photo_Q))
