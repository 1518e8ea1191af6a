"""The threads of OpenMP, which torch computes with on a CPU: how many, and where they stay."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from samclip_core.memory import keep_memory

BINDING = {"OMP_PROC_BIND": "true", "OMP_PLACES": "threads"}


def use_cores(number: int = 0) -> None:
    """Let torch compute on ``number`` cores in every thread from now on; 0: on all there are.

    With all that the process may use, each of OpenMP's threads stays on one: where a virtual
    machine had rested for a tenth of a second, they were woken on one core together, and a click
    took 48 ms instead of 18. Only what is asked before anything brings in torch can do that, and
    only on Linux. Threads and processes that are started later are as free as before. What is
    freed is kept (``keep_memory``).
    """
    keep_memory()
    movable = hasattr(os, "sched_getaffinity")
    cores = os.sched_getaffinity(0) if movable else range(os.cpu_count() or 1)
    binding = BINDING if movable and not number and "torch" not in sys.modules else {}
    with _environment(binding):  # read by libgomp, which comes with torch
        import torch
    if movable:
        os.sched_setaffinity(0, cores)  # libgomp has bound this thread, and what it would start
    torch.set_num_threads(number or len(cores))


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
