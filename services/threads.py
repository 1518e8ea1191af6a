"""Work off the event loop, measured. Serve restarts a replica whose loop is blocked."""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Executor
from typing import ParamSpec, TypeVar

from services import metrics

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
