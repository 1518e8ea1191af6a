"""Fit the numbers that say whether a text's object is there, and which region it is.

Names of a photograph's things are there, the set's other names are not. Two logistic regressions
follow each other. The first tells the regions that fit a thing of the name from the others, and
needs outlines. The second one weighs the best region's log-odds with the evidence in the whole
picture.

N names, R regions, M rows of F numbers.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.evidence import BESIDE, Compared, Evidence, Words, log_odds, probability
from samclip_core.answers.map_prompts import logits_side
from samclip_core.answers.objects import choose
from samclip_core.answers.zero_shot import unit
from samclip_core.calibration import Presence, RegionWeights
from samclip_core.model import SamClip
from samclip_core.types import ImageFeatures
from training.data.sample import Sample
from training.evaluation import words
from training.evaluation.measures import PERCENTILES, ratio_figures, resampled
from training.evaluation.suite import Metrics

REFUSED = 0.9
"""Share of the absent names that score less than ``min_score``, in photographs that the model never
saw: networks refuse better in those that they were trained on, by as much as they learnt there."""
RIGHT, SURE_NAMES = 0.9, 30
"""Least share of the names that are there, among those that score at least ``sure``, and the least
number of those names: the interval of fewer says nothing."""


@dataclass(frozen=True, eq=False)
class NameEvidence:
    """The names that are in a photograph, and their evidence.

    ``values_N2`` has the peak of the name's map and the evidence of the image vector,
    ``numbers_NRF`` those that ``RegionWeights`` weighs; ``fits_NR`` is None without outlines.
    ``cosine_N2`` has the cosines of the photograph's vector in a collection, and of its nearest
    object: -inf without regions.
    """

    there_N: NDArray[np.bool_]
    values_N2: NDArray[np.float64]
    numbers_NRF: NDArray[np.float32]
    fits_NR: NDArray[np.bool_] | None
    cosine_N2: NDArray[np.float32]

    def log_odds(self, presence: Presence) -> NDArray[np.floating]:
        """Return the log-odds that each name's object is there."""
        found_N = np.asarray(log_odds(presence, *self.values_N2.T), np.float64)
        if presence.regions is None:
            return found_N
        added_NR = self.numbers_NRF @ np.array(astuple(presence.regions))
        return np.asarray(found_N + added_NR.max(axis=1, initial=-np.inf), np.float64)


def words_of(model: SamClip, names: Sequence[str]) -> Words:
    """Return the names as texts beside those that rival with every text."""
    text_ND = model.embed_labels([*names, *BESIDE])
    return Words.of(names, text_ND, model.config.logit_scale)


def evidence_of(
    features: ImageFeatures, sample: Sample, asked: Words, image_D: NDArray[np.float32]
) -> NameEvidence:
    """Ask for all names in a photograph; its features may have regions."""
    evidence = Evidence.of(features, asked, logits_side(features))
    peaks = [evidence.peak(name, evidence.picture_ss) for name in asked.row]
    things = {instance["category"] for instance in sample.info["instances"]}
    numbers, fits = np.zeros((len(asked.row), 0, 6), np.float32), None
    cosine_N2 = np.full((len(asked.row), 2), -np.inf, np.float32)
    cosine_N2[:, 0] = asked.text_XD @ image_D
    if features.regions_N is not None:
        compared = Compared.of(evidence, features.regions)
        numbers = np.stack([compared.numbers(name) for name in asked.row])
        fits = _fits(compared, sample, asked) if outlined(sample) else None
        chosen_R = choose(features.regions, features.geometry)
        object_RD = unit(features.regions.clip_RD[chosen_R])
        cosine_N2[:, 1] = (asked.text_XD @ object_RD.T).max(axis=1, initial=-np.inf)
    there_N = np.array([name in things for name in asked.row])
    values_N2 = np.stack([peaks, evidence.pooled_X], axis=1)
    return NameEvidence(there_N, values_N2, numbers, fits, cosine_N2)


def outlined(sample: Sample) -> bool:
    """Return whether all things of a photograph have outlines."""
    return all(instance.get("segmentation") for instance in sample.info["instances"])


def _fits(compared: Compared, sample: Sample, asked: Words) -> NDArray[np.bool_]:
    """Return which regions fit a thing of each name, or all of them, N×R; in cells of logits."""
    levels_Rss = compared.regions.levels_Rss
    rows, columns = compared.evidence.geometry.grid(levels_Rss.shape[-1])
    inside_RK = (levels_Rss[:, :rows, :columns] > 0).reshape(len(levels_Rss), -1)
    fits_NR = np.zeros((len(asked.row), len(inside_RK)), np.bool_)
    for name, truths in words.truths(sample).items():
        for truth_HW in truths if name in asked.row else ():
            share_hw = cv2.resize(
                truth_HW.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA
            )
            truth_K = (share_hw > 0.5).ravel()
            either_R = (inside_RK | truth_K).sum(axis=1)
            fits_NR[asked.row[name]] |= (inside_RK & truth_K).sum(axis=1) >= words.FITS * either_R
    return fits_NR


def fit(photos: Sequence[NameEvidence], unseen: Sequence[NameEvidence]) -> Presence:
    """Fit the weights, and the score that ``REFUSED`` of the absent names do not reach.

    The score is fitted to those photographs that the model never saw. Raises ValueError unless, in
    all and in these, some names are there and others are not.
    """
    for several in (photos, unseen):
        there_M = np.concatenate([photo.there_N for photo in several])
        if there_M.all() or not there_M.any():
            raise ValueError(
                f"{there_M.sum()} of {len(there_M)} names are in their photographs: give "
                "photographs that hold some names of classes.json and lack others"
            )
    fitted = _weighed(photos, region_weights(photos))
    there_PN = np.array([photo.there_N for photo in unseen])
    score_PN = probability(np.array([photo.log_odds(fitted) for photo in unseen]))
    least = float(np.quantile(score_PN[~there_PN], REFUSED))
    return replace(fitted, min_score=round(least, 3), sure=sure(score_PN, there_PN))


def sure(score_PN: NDArray[np.floating], there_PN: NDArray[np.bool_]) -> float | None:
    """Return the smallest score from which on ``RIGHT`` of the names are there; None if none is.

    From there on, the share's lower bound is at least ``RIGHT`` at every score that ``SURE_NAMES``
    names reach: the lower end of its 95 % interval over resamples of the photographs. Names that
    are there weigh as much as the others. Both must occur.
    """
    thousandths_PN = np.floor(1000 * score_PN).astype(np.int64)  # of which the result is one
    present_PS, absent_PS = (
        np.array([np.bincount(scores_N[own_N], minlength=1001) for scores_N, own_N in pairs])
        for pairs in (
            zip(thousandths_PN, part_PN, strict=True) for part_PN in (there_PN, ~there_PN)
        )
    )
    drawn_RP = resampled(len(score_PN))
    present_RS, absent_RS = (
        drawn_RP @ (part_PS[:, ::-1].cumsum(axis=1)[:, ::-1] / part_PS.sum())
        for part_PS in (present_PS, absent_PS)
    )
    some_RS = np.maximum(present_RS + absent_RS, np.finfo(float).tiny)
    lower_S = np.percentile(present_RS / some_RS, PERCENTILES[0], axis=0)
    enough_S = (present_PS + absent_PS).sum(axis=0)[::-1].cumsum()[::-1] >= SURE_NAMES
    wrong_S = enough_S & (lower_S < RIGHT)
    sure_S = enough_S & (wrong_S[::-1].cumsum()[::-1] == 0)
    return float(sure_S.argmax()) / 1000 if sure_S.any() else None


def region_weights(photos: Sequence[NameEvidence]) -> NDArray[np.float64] | None:
    """Return the F weights that tell regions that fit their name; None if they cannot be fitted."""
    numbers, fits = [], []
    for photo in photos:
        if photo.fits_NR is not None:
            numbers += [*photo.numbers_NRF[photo.there_N]]
            fits += [*photo.fits_NR[photo.there_N]]
    fits_M = np.concatenate(fits) if fits else np.zeros(0, np.bool_)
    if fits_M.all() or not fits_M.any():
        return None
    return logistic(np.concatenate(numbers), fits_M)[:-1]


def _weighed(photos: Sequence[NameEvidence], weights_F: NDArray[np.float64] | None) -> Presence:
    """Weigh the evidence in the picture, and if regions have weights, the best one's log-odds."""
    if weights_F is not None:
        photos = [photo for photo in photos if photo.numbers_NRF.shape[1]]
    values_MF = np.concatenate([photo.values_N2 for photo in photos])
    if weights_F is not None:
        best = [(photo.numbers_NRF @ weights_F).max(axis=1) for photo in photos]
        values_MF = np.column_stack([np.concatenate(best), values_MF])
    fitted = logistic(values_MF, np.concatenate([photo.there_N for photo in photos]))
    *of_region, map_weight, pooled_weight, offset = (float(weight) for weight in fitted)
    if of_region and of_region[0] <= 0:  # regions say nothing about the texts
        return _weighed(photos, None)
    regions = None
    if weights_F is not None:
        rounded = (round(float(weight), 3) for weight in of_region[0] * weights_F)
        names = (field.name for field in fields(RegionWeights))
        regions = RegionWeights(**dict(zip(names, rounded, strict=True)))
    return Presence(
        map_weight=round(map_weight, 3),
        pooled_weight=round(pooled_weight, 3),
        offset=round(offset, 3),
        min_score=0.5,
        regions=regions,
    )


def measured(presence: Presence, photos: Sequence[NameEvidence]) -> Metrics:
    """Return the shares of present names found and of absent names refused, and their numbers.

    Also, of the names that score at least ``sure``, the share that is there; present and absent
    names have the same total weight. With 95 % bootstrap intervals over photographs.
    """
    there_PN = np.array([photo.there_N for photo in photos])
    score_PN = probability(np.array([photo.log_odds(presence) for photo in photos]))
    found_PN = score_PN >= presence.min_score
    present_P, absent_P = there_PN.sum(axis=1), (~there_PN).sum(axis=1)
    sure_PN = score_PN >= (presence.sure or np.inf)
    right_P, wrong_P = ((sure_PN & named_PN).sum(axis=1) for named_PN in (there_PN, ~there_PN))
    alike = present_P.sum() / max(1, absent_P.sum())
    return (
        ratio_figures("names_found", (found_PN & there_PN).sum(axis=1), present_P)
        | ratio_figures("names_refused", (~found_PN & ~there_PN).sum(axis=1), absent_P)
        | ratio_figures("names_sure_right", right_P, right_P + alike * wrong_P)
        | {"names_present": int(present_P.sum()), "names_absent": int(absent_P.sum())}
        | {"names_photographs": len(there_PN)}
    )


def logistic(values_MF: NDArray[np.floating], true_M: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Fit a logistic regression with an L2 penalty, in which both classes weigh the same.

    Returns the F weights, then the offset. Both classes must occur.
    """
    from sklearn.linear_model import LogisticRegression  # takes seconds to import

    model = LogisticRegression(C=1.0, class_weight="balanced", solver="newton-cholesky")
    fitted = model.fit(values_MF.astype(np.float64), true_M)  # in float32 its steps do not converge
    return np.append(fitted.coef_, fitted.intercept_)
