"""The driver of work in steps (``samclip_core.answers.steps``) for services."""

from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import TypeVar

from samclip_core.answers.steps import Done, Question, Steps, advance
from samclip_core.types import MaskSet
from services.batching import threads

T = TypeVar("T")


async def run(
    pool: Executor, steps: Steps[T], ask: Callable[[Question], Awaitable[list[MaskSet]]]
) -> T:
    """Run each step in a thread of ``pool`` and ``ask`` its questions; return the result.

    Cancellation takes effect between two steps. Raises the errors of the steps and of ``ask``.
    """
    found: list[MaskSet] | None = None
    while True:
        step = await threads.run(pool, "mask_decode", advance, steps, found)
        if isinstance(step, Done):
            return step.result
        found = await ask(step) if step else []
