"""Fits a linear layer to embeddings, and judges it by cross-validation.

N pictures, D width, C classes.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple
from warnings import catch_warnings, filterwarnings

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from threadpoolctl import threadpool_limits

STRENGTHS = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
"""Inverse regularisations to try. Vectors of length 1 need larger ones than scaled features."""
FOLDS = 5
MOST_FITS = (len(STRENGTHS) + 1) * FOLDS
KEPT = 0.95
"""Share of the right answers above the threshold."""


class Fitted(NamedTuple):
    """A linear layer, and the probabilities that cross-validation gave each picture.

    left_out_N: the best probability of each picture by layers that do not know its class.
    """

    weight_CD: NDArray[np.float32]
    bias_C: NDArray[np.float32]
    strength: float
    threshold: float
    held_out_NC: NDArray[np.floating]
    left_out_N: NDArray[np.floating]


def fit(
    vectors_ND: NDArray[np.float32],
    class_N: NDArray[np.int64],
    groups: Sequence[str],
    advance: Callable[[int], None] = lambda count: None,
) -> Fitted:
    """Fit a logistic regression of the strength with the lowest log loss in cross-validation.

    Pictures of a group are all in one fold. The threshold is the highest, rounded down, that keeps
    KEPT of the right answers. ``advance`` counts up to MOST_FITS fits.
    """
    split, best, lowest = PredefinedSplit(_folds(class_N, groups)), 0.0, np.inf
    # Beside other work, several threads take ten times as long.
    with threadpool_limits(1), catch_warnings():
        filterwarnings("ignore", "Number of classes in training fold")
        for strength in STRENGTHS:
            model = LogisticRegression(C=strength, max_iter=1000)
            tried_NC = cross_val_predict(
                model, vectors_ND, class_N, cv=split, method="predict_proba"
            )
            advance(FOLDS)
            true_N = tried_NC[np.arange(len(class_N)), class_N]
            loss = -np.log(np.maximum(true_N, 1e-12)).mean()
            if loss >= lowest:  # it has one minimum, and stronger fits take longer
                break
            best, lowest, held_out_NC = strength, loss, tried_NC
        fitted = LogisticRegression(C=best, max_iter=1000).fit(vectors_ND, class_N)
        left_out_N = _left_out(vectors_ND, class_N, best, advance)
    scores = held_out_NC.max(axis=1)[held_out_NC.argmax(axis=1) == class_N]
    kept = np.quantile(scores, 1 - KEPT, method="lower") if len(scores) else 0.0
    return Fitted(*layer(fitted), best, int(1000 * kept) / 1000, held_out_NC, left_out_N)


def _left_out(
    vectors_ND: NDArray[np.float32],
    class_N: NDArray[np.int64],
    strength: float,
    advance: Callable[[int], None],
) -> NDArray[np.floating]:
    """Return the best probability of each picture by layers fitted without its class.

    Of two classes, none can be left out: it is empty.
    """
    classes = np.random.default_rng(0).permutation(class_N.max() + 1)
    best_N = np.zeros(len(class_N) if len(classes) > 2 else 0)
    for some in np.array_split(classes, min(FOLDS, len(classes))) if len(best_N) else ():
        unknown_N = np.isin(class_N, some)
        model = LogisticRegression(C=strength, max_iter=1000)
        model.fit(vectors_ND[~unknown_N], class_N[~unknown_N])
        best_N[unknown_N] = model.predict_proba(vectors_ND[unknown_N]).max(axis=1)
        advance(1)
    return best_N


def _folds(class_N: NDArray[np.int64], groups: Sequence[str]) -> NDArray[np.int64]:
    """Return the fold of each picture: each class is spread evenly, and groups stay together."""
    names, group_N = np.unique(np.asarray(groups), return_inverse=True)
    rarest_last = np.argsort(-np.bincount(class_N)[class_N], kind="stable")
    class_G, fold_G = np.empty((2, len(names)), np.int64)
    class_G[group_N[rarest_last]] = class_N[rarest_last]
    order = np.lexsort((np.random.default_rng(0).permutation(len(names)), class_G))
    fold_G[order] = np.arange(len(names)) % FOLDS
    return fold_G[group_N]


def layer(fitted: LogisticRegression) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the weight and the bias before a softmax, also of two classes."""
    weight_CD, bias_C = fitted.coef_, fitted.intercept_
    if len(weight_CD) == 1:  # a sigmoid
        weight_CD, bias_C = (np.concatenate([-one, one]) / 2 for one in (weight_CD, bias_C))
    # safetensors would write the columns of scikit-learn's array as rows.
    return np.ascontiguousarray(weight_CD, np.float32), bias_C.astype(np.float32)
