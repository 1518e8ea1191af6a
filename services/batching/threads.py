"""Run work in threads and measure it. Serve restarts a replica whose event loop is blocked."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from time import monotonic
from typing import ParamSpec, TypeVar

from samclip_core.answers.steps import Done, Question, Steps, advance
from samclip_core.io import image
from samclip_core.types import MaskSet
from services.observability import metrics

SMALL_FILE = 512 * 1024
"""Largest file that is hashed on the event loop: in 0.3 ms, about the cost of using a thread."""

TURN_S = 0.1
"""Longest time for which a thread works on one request before others get a turn. It limits their
wait, and the work wasted on a cancelled request."""

P = ParamSpec("P")
T = TypeVar("T")


async def run(
    pool: Executor, stage: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Call ``function`` in a thread of ``pool``, unless the call is cancelled before that."""

    def measured() -> T:
        with metrics.stage(stage):
            return function(*args, **kwargs)

    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(pool, context.run, measured)


async def drain(pool: Executor, stage: str, items: Iterator[T]) -> list[T]:
    """Return all ``items``, computed in turns of TURN_S in threads of ``pool``.

    Between two turns other requests can use the thread, and cancellation takes effect.
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


async def run_steps(
    pool: Executor, steps: Steps[T], ask: Callable[[Question], Awaitable[list[MaskSet]]]
) -> T:
    """Run each step in a thread of ``pool`` and ``ask`` its questions; return the result.

    Cancellation takes effect between two steps. Raises the errors of the steps and of ``ask``.
    """
    masks: list[MaskSet] | None = None
    while True:
        step = await run(pool, "mask_decode", advance, steps, masks)
        if isinstance(step, Done):
            return step.result
        masks = await ask(step) if step else []


async def image_key(pool: Executor, encoded: bytes) -> str:
    """Return ``samclip_core.io.image.image_key``, for a large file from a thread of ``pool``."""
    if len(encoded) > SMALL_FILE:
        return await run(pool, "hash", image.image_key, encoded)
    with metrics.stage("hash"):
        return image.image_key(encoded)
