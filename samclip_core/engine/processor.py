"""The processor of this machine, as far as its system tells."""

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

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
