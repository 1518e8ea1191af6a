"""A logistic regression by Newton's method. M rows of F numbers."""

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.evidence import probability

L2 = 1.0
ROUNDS = 50


def logistic(values_MF: NDArray[np.floating], true_M: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Fit a logistic regression with an L2 penalty, in which both classes weigh the same.

    Returns the F weights, then the offset. Both classes must occur.
    """
    weight_M = np.where(true_M, 0.5 / true_M.sum(), 0.5 / (~true_M).sum()) * len(true_M)
    rows_MF = np.column_stack([values_MF, np.ones(len(values_MF))])
    penalty_F = np.append(np.full(values_MF.shape[1], L2), 0.0)
    weights_F = np.zeros(len(penalty_F))
    for _ in range(ROUNDS):  # Newton's method
        p_M = probability(rows_MF @ weights_F)
        slope_F = rows_MF.T @ (weight_M * (p_M - true_M)) + penalty_F * weights_F
        curve_FF = (rows_MF * (weight_M * p_M * (1 - p_M))[:, None]).T @ rows_MF
        weights_F -= np.linalg.solve(curve_FF + np.diag(penalty_F), slope_F)
    return weights_F
