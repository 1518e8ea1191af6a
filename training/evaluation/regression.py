"""A logistic regression by Newton's method. M rows of K numbers."""

import numpy as np
from numpy.typing import NDArray

L2 = 1.0
ROUNDS = 50


def balanced_logistic(rows_MK: NDArray[np.floating], true_M: NDArray[np.bool_]) -> list[float]:
    """Return K weights and an offset, with an L2 penalty; true and false rows count the same.

    Raises ValueError unless both occur.
    """
    if true_M.all() or not true_M.any():
        raise ValueError(f"{true_M.sum()} of {len(true_M)} rows are true: both kinds are needed")
    weight_M = np.where(true_M, 0.5 / true_M.sum(), 0.5 / (~true_M).sum()) * len(true_M)
    rows_M1 = np.column_stack([rows_MK, np.ones(len(rows_MK))])
    penalty_11 = np.diag([*[L2] * rows_MK.shape[1], 0.0])
    weights_1 = np.zeros(len(penalty_11))
    for _ in range(ROUNDS):
        p_M = 1 / (1 + np.exp(-rows_M1 @ weights_1))
        slope_1 = rows_M1.T @ (weight_M * (p_M - true_M)) + penalty_11 @ weights_1
        curve_11 = (rows_M1 * (weight_M * p_M * (1 - p_M))[:, None]).T @ rows_M1 + penalty_11
        weights_1 -= np.linalg.solve(curve_11, slope_1)
    return [round(float(weight), 3) for weight in weights_1]
