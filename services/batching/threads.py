"""Work off the event loop, measured. Serve restarts a replica whose loop is blocked."""

import asyncio
import contextvars
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from time import monotonic
from typing import ParamSpec, TypeVar

from samclip_core.io import image
from services.observability import metrics

SMALL_FILE = 512 * 1024
"""Bytes that are hashed in 0.3 ms. A thread and back costs about as much CPU, and where the cores
are busy it takes 2 ms one time in a hundred."""

TURN_S = 0.1
"""A thread works so long for one caller before others get it: what they wait, and what is computed
in vain for a caller who has gone."""

P = ParamSpec("P")
T = TypeVar("T")


async def run(
    pool: Executor, stage: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Call ``function`` in a thread of ``pool``; a caller that gave up in time never starts it."""

    def measured() -> T:
        with metrics.stage(stage):
            return function(*args, **kwargs)

    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(pool, context.run, measured)


async def drain(pool: Executor, stage: str, items: Iterator[T]) -> list[T]:
    """Everything that ``items`` yields, computed by turns in threads of ``pool``.

    Between two turns others use the thread, and work that was given up ends.
    """
    made: list[T] = []
    while await run(pool, stage, _turn, items, made):
        pass
    return made


def _turn(items: Iterator[T], made: list[T]) -> bool:
    """Move items to ``made`` for TURN_S; return whether there may be more."""
    end = monotonic() + TURN_S
    for item in items:
        made.append(item)
        if monotonic() >= end:
            return True
    return False


async def image_key(pool: Executor, encoded: bytes) -> str:
    """``samclip_core.io.image.image_key``; of a large file in a thread of ``pool``."""
    if len(encoded) > SMALL_FILE:
        return await run(pool, "hash", image.image_key, encoded)
    with metrics.stage("hash"):
        return image.image_key(encoded)
