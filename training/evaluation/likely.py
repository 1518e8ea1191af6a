"""Fit the score from which on an image of a collection probably shows what a text says.

A name asks collections that are drawn from photographs: some hold it, the others should be answered
with "nothing like it".

P photographs, N names, M answers: the best score of a name in a collection.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from samclip_core.calibration import LikelyScores
from training.evaluation.presence import Photo
from training.evaluation.suite import Metrics

SIZE = 20
"""Photographs of a drawn collection, at most half of all: more let more names score by chance."""
DRAWN = 200
KINDS = ("images", "objects")


def fit(photos: Sequence[Photo]) -> LikelyScores | None:
    """Return the scores that best tell names that are there from others; None if all or none are.

    For objects only photographs with regions count.
    """
    images, objects = (least_score(*answers(photos, column)) for column in range(len(KINDS)))
    if images is None or objects is None:
        return None
    return LikelyScores(images=images, objects=objects)


def answers(photos: Sequence[Photo], column: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the best score of each name in each collection, M, and whether the name is there."""
    usable = [photo for photo in photos if np.isfinite(photo.cosine_N2[:, column]).all()]
    if len(usable) < 2:
        return np.zeros(0), np.zeros(0, np.bool_)
    score_PN = np.array([photo.cosine_N2[:, column] for photo in usable])
    there_PN = np.array([photo.there_N for photo in usable])
    random, size = np.random.default_rng(0), min(SIZE, len(usable) // 2)
    drawn = [random.permutation(len(usable))[:size] for _ in range(DRAWN)]
    best_M = np.concatenate([score_PN[chosen].max(axis=0) for chosen in drawn])
    return best_M, np.concatenate([there_PN[chosen].any(axis=0) for chosen in drawn])


def least_score(best_M: NDArray[np.float64], there_M: NDArray[np.bool_]) -> float | None:
    """Return the score with the highest mean of the shares of ``rates``."""
    if there_M.all() or not there_M.any():
        return None
    candidates = np.unique(np.quantile(best_M, np.linspace(0, 1, 201)).round(3))
    return float(max(candidates, key=lambda least: sum(rates(best_M, there_M, least))))


def rates(
    best_M: NDArray[np.float64], there_M: NDArray[np.bool_], least: float
) -> tuple[float, float]:
    """Return the shares of names there that are found, and of the others that are refused."""
    likely_M = best_M >= least
    return float(likely_M[there_M].mean()), float((~likely_M[~there_M]).mean())


def measured(likely: LikelyScores, photos: Sequence[Photo]) -> Metrics:
    """Return the ``rates`` in collections of these photographs, where there are any."""
    figures: Metrics = {}
    for column, kind in enumerate(KINDS):
        best_M, there_M = answers(photos, column)
        if there_M.any() and not there_M.all():  # else nothing can be found, or refused
            found, refused = rates(best_M, there_M, getattr(likely, kind))
            figures |= {f"likely_{kind}_found": found, f"likely_{kind}_refused": refused}
    return figures
