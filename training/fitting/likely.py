"""Fit the score from which on an image of a collection probably shows what a text says.

A text that nothing in a collection shows should get "nothing like it". Its best cosine is the
highest of as many as the collection has images, and the highest of N grows nearly as log N. So the
score at which ``REFUSED`` of such texts stay below is computed for several sizes, and a line is
laid through these scores over the logarithm of the size. Nothing is said about larger collections:
the highest of the cosines that were measured decides there.

P photographs, N names, M answers: the best score of a name in a collection. S sizes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samclip_core.calibration import LikelyScores
from training.evaluation.suite import Metrics
from training.fitting.presence import NameEvidence

REFUSED = 0.8
"""Share of the names that no image of a collection shows whose best score is less."""
REPORTED = (5, 20, 40)
"""Sizes of the collections that are drawn to measure the scores, at most half of the photographs:
larger ones would hold nearly all names."""
DRAWN = 200
SIZES = 8
"""Most sizes at which a score is computed, up to half of the photographs."""
KINDS = ("images", "objects")
_SCORES = np.arange(-1000, 1001) / 1000


def fit(photos: Sequence[NameEvidence], unseen: Sequence[NameEvidence]) -> LikelyScores | None:
    """Return the scores; None without photographs that lack names. For objects, with regions.

    The growth follows from all photographs, the level from those that the model never saw.
    """
    fitted: dict[str, Any] = {}
    for column, kind in enumerate(KINDS):
        line = _line(photos, unseen, column)
        if line is None:
            return None
        score, growth, most = line
        fitted |= {kind: round(score, 3), f"{kind}_growth": round(growth, 4), f"{kind}_most": most}
    return LikelyScores(**fitted)


def _line(
    photos: Sequence[NameEvidence], unseen: Sequence[NameEvidence], column: int
) -> tuple[float, float, int] | None:
    """Return the score for one image, its growth, and the largest size."""
    size_S, score_S = _scores(photos, column)
    own_S, own_score_S = _scores(unseen, column)
    if len(size_S) < 2 or not len(own_S):
        return None
    growth = float(np.polyfit(np.log(size_S), score_S, 1)[0])
    return float(np.mean(own_score_S - growth * np.log(own_S))), growth, int(size_S[-1])


def _scores(
    photos: Sequence[NameEvidence], column: int
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return sizes, and for each the score that ``REFUSED`` of the absent names do not reach.

    A name that P photographs lack has no higher score than s in a collection of N with the
    probability (share of them with at most s) ** N.
    """
    score_PN, there_PN = _measurable(photos, column)
    share_NK = [
        np.searchsorted(np.sort(score_P[~there_P]), _SCORES) / np.count_nonzero(~there_P)
        for score_P, there_P in zip(score_PN.T, there_PN.T, strict=True)
        if not there_P.all()
    ]
    if not share_NK:
        return np.zeros(0, np.intp), np.zeros(0)
    half = len(score_PN) // 2  # of more, the highest cosines alone would decide
    size_S = np.unique(np.geomspace(1, half, SIZES).astype(np.intp)) if half else np.zeros(0, int)
    refused_SK = np.array([np.mean(np.power(share_NK, size), axis=0) for size in size_S])
    return size_S, _SCORES[(refused_SK >= REFUSED).argmax(axis=1)]


def _measurable(
    photos: Sequence[NameEvidence], column: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return scores and presence P×N of the photographs that have scores; for objects, regions."""
    usable = [photo for photo in photos if np.isfinite(photo.cosine_N2[:, column]).all()]
    if not usable:
        return np.zeros((0, 0), np.float32), np.zeros((0, 0), np.bool_)
    score_PN = np.array([photo.cosine_N2[:, column] for photo in usable], np.float32)
    return score_PN, np.array([photo.there_N for photo in usable], np.bool_)


def answers(
    photos: Sequence[NameEvidence], column: int, size: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the best score of each name in drawn collections, M, and whether the name is there."""
    score_PN, there_PN = _measurable(photos, column)
    random = np.random.default_rng(0)
    drawn = [random.permutation(len(score_PN))[:size] for _ in range(DRAWN)]
    best_M = np.concatenate([score_PN[chosen].max(axis=0) for chosen in drawn])
    return best_M, np.concatenate([there_PN[chosen].any(axis=0) for chosen in drawn])


def measured(likely: LikelyScores, photos: Sequence[NameEvidence]) -> Metrics:
    """Return the shares of names there that are found, and of others that are refused, by size."""
    figures: Metrics = {}
    for column, kind in enumerate(KINDS):
        half = len(_measurable(photos, column)[0]) // 2
        for size in [size for size in REPORTED if size <= half]:
            least = likely.among(size, objects=kind == "objects")
            if not least:  # not known
                continue
            best_M, there_M = answers(photos, column, size)
            if there_M.any() and not there_M.all():  # else nothing can be found, or refused
                likely_M = best_M >= least
                figures[f"likely_{kind}_score_of_{size}"] = least
                figures[f"likely_{kind}_found_of_{size}"] = float(likely_M[there_M].mean())
                figures[f"likely_{kind}_refused_of_{size}"] = float((~likely_M[~there_M]).mean())
    return figures
