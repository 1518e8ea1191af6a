"""The processor and memory of this process: its cores, and whether other programs disturb it."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import perf_counter, process_time

GROUPS, GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""Linux's control groups, and the list of those of this process."""


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available() -> float:
    """Return how many cores' time this process may use: its container may have a quota."""
    return min([cores(), *_quotas()])


def _quotas() -> Iterator[float]:
    """Yield the quota of each control group that contains this process, in cores."""
    with suppress(OSError):
        for line in GROUP.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "cpu" in controllers.split(","):
                root = GROUPS / controllers
                inner = root / path.lstrip("/")
                for group in (inner, *inner.parents):
                    if group.is_relative_to(root):
                        yield from _quota(group)


def _quota(group: Path) -> Iterator[float]:
    for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        with suppress(OSError, ValueError):  # "max" and -1 are no quotas
            quota, period = map(int, " ".join((group / n).read_text() for n in names).split())
            if quota > 0:
                yield quota / period


def name() -> str:
    """Return the processor's name, or its architecture where the system does not tell."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def instructions() -> set[str]:
    """Return the names of the processor's instruction sets; only Linux lists them."""
    return set(_cpuinfo("flags", "Features").split())


def _cpuinfo(*keys: str) -> str:
    listed = Path("/proc/cpuinfo")
    for line in listed.read_text().splitlines() if listed.exists() else ():
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return ""


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


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
_LARGEST_ONCE = 2**25  # maximum of _MMAP_THRESHOLD until glibc 2.34


def keep_memory(most: int = 2**28) -> None:
    """Make glibc keep up to ``most`` bytes (below 2**31) of the memory that this process frees.

    Blocks of at least an eighth of that are still returned. By default glibc returns every large
    block, and the page faults to allocate it again take an eighth of the time to encode an image.
    All threads share one heap from then on, because a thread's own heap returns every 64 MB that
    become free, regardless of this setting. Does nothing with other C libraries.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, most // 8) or mallopt(_MMAP_THRESHOLD, _LARGEST_ONCE)
        mallopt(_TRIM_THRESHOLD, most)
        mallopt(_ARENA_MAX, 1)
