"""Work off the event loop, measured. Serve restarts a replica whose loop is blocked."""

import asyncio
import contextvars
import os
import sys
from collections.abc import Callable
from concurrent.futures import Executor
from typing import ParamSpec, TypeVar

from samclip_core import image
from services import metrics
from services.settings import Settings

SMALL_FILE = 128 * 1024
"""Bytes that are hashed in 0.07 ms: a thread and back take as long, where the cores are busy 2 ms
one time in a hundred."""

P = ParamSpec("P")
T = TypeVar("T")


def use_cores(settings: Settings) -> None:
    """Let torch compute on as many cores as the settings say, in every thread from now on.

    The environment gives each process one: this is for those that hold a model. Where these are all
    that the process may use, each of OpenMP's threads stays on one: where a virtual machine had
    rested for a tenth of a second, they were woken on one core together, and a click took 48 ms
    instead of 18. Needs to be asked before anything brings in torch.
    """
    cores = os.sched_getaffinity(0)
    if not settings.torch_threads and "torch" not in sys.modules:
        # Read by libgomp, which comes with torch.
        os.environ |= {"OMP_PROC_BIND": "true", "OMP_PLACES": "threads"}
    import torch  # not every service needs it

    os.sched_setaffinity(0, cores)  # libgomp has bound this thread, and what it would start
    torch.set_num_threads(settings.torch_threads or len(cores))


async def run(
    pool: Executor, stage: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Call ``function`` in a thread of ``pool``; a caller that gave up in time never starts it."""

    def measured() -> T:
        with metrics.stage(stage):
            return function(*args, **kwargs)

    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(pool, context.run, measured)


async def image_key(pool: Executor, encoded: bytes) -> str:
    """``samclip_core.image.image_key``; of a large file in a thread of ``pool``."""
    if len(encoded) > SMALL_FILE:
        return await run(pool, "hash", image.image_key, encoded)
    with metrics.stage("hash"):
        return image.image_key(encoded)
