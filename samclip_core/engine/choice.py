"""Choose a runtime and a precision by measuring: time, and agreement with float32.

Shape letters as in ``base``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from samclip_core.geometry import FloatArray

RUNS = 8
"""Maximum number of timed runs of each candidate; the minimum is one."""
LONGEST_S = 2.0
"""Time after which no further timed run starts."""
CLEAR = 1.5
"""No further run is needed if one candidate takes this many times as long as the other."""
WORTH = 0.9
"""A lower precision, or another runtime, must take less than this fraction of the time."""


def milliseconds(runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Return the minimum time of a run of each candidate; 0 if there is only one."""
    if len(runs) == 1:
        return dict.fromkeys(runs, 0.0)
    least = dict.fromkeys(runs, math.inf)
    end = perf_counter() + LONGEST_S
    for number in range(RUNS):
        for name, run in runs.items():
            begin = perf_counter()
            run()
            least[name] = min(least[name], round(1000 * (perf_counter() - begin), 2))
        clear = number and max(least.values()) > CLEAR * min(least.values())
        if clear or perf_counter() > end:
            break
    return least


def fastest(measured_ms: Mapping[str, float]) -> str:
    """Return the fastest candidate; a later one must be clearly faster than an earlier one."""
    best, *others = measured_ms
    for name in others:
        if measured_ms[name] < WORTH * measured_ms[best]:
            best = name
    return best


def noise(side: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return one image of fixed random noise, as ``pixels_13SS`` and ``sizes_12``."""
    pixels_13SS = np.random.default_rng(0).integers(0, 256, (1, 3, side, side), np.uint8)
    return pixels_13SS, np.array([[side, side]], np.int64)


def agreement(one: Sequence[FloatArray], other: Sequence[FloatArray]) -> float:
    """Return the smallest cosine between corresponding outputs, each flattened to a vector."""
    cosines = []
    for ours, theirs in zip(one, other, strict=True):
        a, b = (output.astype(np.float64).reshape(-1) for output in (ours, theirs))
        cosines.append(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))
    return float(np.min(cosines))
