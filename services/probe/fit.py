"""Fits a linear layer to embeddings, and judges it by cross-validation.

N pictures, D width, C classes.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from samclip_core.answers.probe import Linear

STRENGTHS = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
"""Inverse regularisations to try. Vectors of length 1 need larger ones than scaled features."""
FOLDS = 5
MOST_FITS = len(STRENGTHS) * FOLDS
KEPT = 0.95
"""Share of the right answers above the threshold."""


class Fitted(NamedTuple):
    """A linear layer, and the probabilities N×C that cross-validation gave each picture."""

    linear: Linear
    strength: float
    threshold: float
    held_out_NC: NDArray[np.floating]


def fit(
    vectors_ND: NDArray[np.float32],
    class_N: NDArray[np.int64],
    groups: Sequence[str],
    advance: Callable[[int], None] = lambda count: None,
) -> Fitted:
    """Fit a logistic regression; pictures of one group are never on both sides of a fold.

    The strength with the lowest log loss wins. The threshold is the highest, rounded down, that
    keeps KEPT of the right answers of cross-validation. ``advance`` counts up to MOST_FITS fits.
    """
    fold_N = folds(class_N, groups)
    best, best_loss, best_NC = STRENGTHS[0], np.inf, np.empty((0, 0))
    for strength in STRENGTHS:
        held_out_NC = _held_out(vectors_ND, class_N, fold_N, strength)
        advance(FOLDS)
        loss = log_loss(held_out_NC, class_N)
        if loss >= best_loss:  # it has one minimum, and stronger fits take longer
            break
        best, best_loss, best_NC = strength, loss, held_out_NC
    linear = layer(_regression(vectors_ND, class_N, best))
    right_N = best_NC.argmax(axis=1) == class_N
    scores = best_NC.max(axis=1)[right_N]
    lowest = np.quantile(scores, 1 - KEPT, method="lower") if len(scores) else 0.0
    return Fitted(linear, best, float(np.floor(lowest * 1000) / 1000), best_NC)


def folds(class_N: NDArray[np.int64], groups: Sequence[str]) -> NDArray[np.int64]:
    """Return the fold of each picture: classes are spread evenly, and groups stay together."""
    names, group_N = np.unique(np.asarray(groups), return_inverse=True)
    rarest_last = np.argsort(-np.bincount(class_N)[class_N], kind="stable")
    class_G = np.empty(len(names), np.int64)
    class_G[group_N[rarest_last]] = class_N[rarest_last]  # the last one stays, the rarest
    order = np.lexsort((np.random.default_rng(0).permutation(len(names)), class_G))
    fold_G = np.empty(len(names), np.int64)
    fold_G[order] = np.arange(len(names)) % FOLDS
    return fold_G[group_N]


def _held_out(
    vectors_ND: NDArray[np.float32],
    class_N: NDArray[np.int64],
    fold_N: NDArray[np.int64],
    strength: float,
) -> NDArray[np.float32]:
    """Return the probabilities N×C of each picture by a fit to the other folds."""
    held_out_NC = np.zeros((len(class_N), class_N.max() + 1), np.float32)
    for fold in np.unique(fold_N):
        held_N = fold_N == fold
        fitted = _regression(vectors_ND[~held_N], class_N[~held_N], strength)
        held_out_NC[np.ix_(held_N, fitted.classes_)] = fitted.predict_proba(vectors_ND[held_N])
    return held_out_NC


def _regression(
    vectors_ND: NDArray[np.float32], class_N: NDArray[np.int64], strength: float
) -> LogisticRegression:
    with threadpool_limits(1):  # beside other work, several threads take ten times as long
        return LogisticRegression(C=strength, max_iter=1000).fit(vectors_ND, class_N)


def log_loss(probability_NC: NDArray[np.floating], class_N: NDArray[np.int64]) -> float:
    """Return the mean negative logarithm of the probability of the true class."""
    true_N = probability_NC[np.arange(len(class_N)), class_N].astype(np.float64)
    return float(-np.log(np.maximum(true_N, 1e-12)).mean())


def layer(fitted: LogisticRegression) -> Linear:
    """Return scikit-learn's model as a linear layer before a softmax, also of two classes."""
    weight_CD, bias_C = fitted.coef_, fitted.intercept_
    if len(weight_CD) == 1:  # a sigmoid
        weight_CD, bias_C = (np.concatenate([-half, half]) for half in (weight_CD / 2, bias_C / 2))
    return Linear(weight_CD.astype(np.float32), bias_C.astype(np.float32))
