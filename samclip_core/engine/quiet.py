"""Whether other programs disturbed a measurement."""

import os
from contextlib import suppress
from pathlib import Path
from time import perf_counter, process_time

from samclip_core.engine.processor import available

WAITED = 0.05
"""Share of their time that threads may wait for a core; beside one busy program it is a quarter."""
SHARE = 0.75
"""Fraction of the available cores that this process must get otherwise: threads also wait if they
are more than the cores, or have used up the quota of their container."""


BUSY = 0.5
"""Programs that run or wait per core, from which on a measurement would be disturbed."""
TASKS = Path("/proc/self/task")
"""Linux's folder of the threads of this process."""


class Watch:
    """Compares the CPU time of this process with what the machine has, from its making on."""

    def __init__(self) -> None:
        self._start = perf_counter(), process_time(), waited_s()

    def quiet(self) -> bool:
        """Return whether this process had the cores that it could use."""
        now = perf_counter(), process_time(), waited_s()
        wall_s, cpu_s, wait_s = (end - start for end, start in zip(now, self._start, strict=True))
        if wait_s <= WAITED * (wait_s + cpu_s):
            return True
        return cpu_s >= SHARE * wall_s * available()


def busy() -> bool:
    """Return whether other programs need the processor already."""
    return os.getloadavg()[0] > BUSY * (os.cpu_count() or 1)


def waited_s() -> float:
    """Return how long the threads of this process have waited for a core, in seconds.

    Where the system does not tell, return the time: they may have waited always.
    """
    total = -1.0
    for task in TASKS.glob("*/schedstat"):
        with suppress(OSError, IndexError, ValueError):  # the thread has ended
            total = max(total, 0.0) + int(task.read_text().split()[1]) / 1e9
    return perf_counter() if total < 0 else total
