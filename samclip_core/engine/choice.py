"""Choose a precision by measuring each one."""

import math
from collections.abc import Callable, Mapping
from time import perf_counter

from samclip_core.engine.base import Dtype

RUNS = 8
"""Maximum number of timed runs per precision; the minimum is two."""
LONGEST_S = 2.0
"""Time after which no further timed run starts."""
WORTH = 0.9
"""A lower precision must take less than this fraction of the time of a higher one."""


def milliseconds(runs: Mapping[Dtype, Callable[[], object]]) -> dict[Dtype, float]:
    """Return the minimum time of a run in each precision; 0 if there is only one precision."""
    if len(runs) == 1:
        return dict.fromkeys(runs, 0.0)
    least = dict.fromkeys(runs, math.inf)
    end = perf_counter() + LONGEST_S
    for number in range(RUNS):
        for name, run in runs.items():
            begin = perf_counter()
            run()
            least[name] = min(least[name], round(1000 * (perf_counter() - begin), 2))
        if number and perf_counter() > end:
            break
    return least


def fastest(measured_ms: Mapping[Dtype, float]) -> Dtype:
    """Return the fastest precision of ``measured_ms``, which starts with the highest precision.

    A lower one must be clearly faster than a higher one.
    """
    best, *others = measured_ms
    for name in others:
        if measured_ms[name] < WORTH * measured_ms[best]:
            best = name
    return best
