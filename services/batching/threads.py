"""Threads and places for the work of requests, whose waiting line is a queue: tenants take turns.

Serve restarts a replica whose event loop is blocked.
"""

import asyncio
import contextvars
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from time import monotonic
from typing import Any, TypeVar

from samclip_core.answers.steps import Decode, Done, Steps, advance, gathered
from samclip_core.io import image
from samclip_core.types import MaskSet
from services.batching.priority import Priority
from services.batching.queue import Queue
from services.observability import metrics

MOST_WAITING = 1024
"""More than a replica can have: Serve limits its requests, and each has few calls at a time."""
SMALL_FILE = 512 * 1024
"""Largest file that is hashed on the event loop: in 0.3 ms, about the cost of using a thread."""

TURN_S = 0.05
"""Longest time for which a thread works on one request before others get a turn. It limits their
wait, and the work wasted on a cancelled request."""

_NOT_FUTURES = StopIteration, CancelledError
"""Errors that a future of asyncio cannot have, or takes for its own."""
T = TypeVar("T")


class Places:
    """A number of places for work that occupies memory until its end. For one event loop."""

    def __init__(self, name: str, number: int):
        self._queue = Queue[Callable[[], Awaitable[None]], None](
            _hold, part=name, max_queue=MOST_WAITING, at_once=number, stops=True, alike=False
        )

    @asynccontextmanager
    async def held(self, priority: Priority, begun: float = 0.0) -> AsyncIterator[None]:
        """Hold a place for the ``async with`` block; ``begun`` as in ``Claim``.

        Raises DeadlineExceeded and Overloaded.
        """
        taken = asyncio.get_running_loop().create_future()

        async def hold() -> None:
            taken.set_result(None)
            await asyncio.Future()

        holding = asyncio.create_task(self._queue.submit(hold, priority, begun=begun))
        try:
            await asyncio.wait([holding, taken], return_when=asyncio.FIRST_COMPLETED)
            if not taken.done():
                await holding  # for its error
            yield
        finally:
            holding.cancel()


class Threads:
    """A number of threads, by default one per core. For one event loop.

    Unless the calls are ``alike``, none is refused for the time that the others are expected to
    take.
    """

    def __init__(self, name: str, number: int = os.cpu_count() or 1, alike: bool = False):
        self._pool = ThreadPoolExecutor(number, name)
        self._queue = Queue[Callable[[], Any], Any](
            partial(_call, self._pool),
            part=name,
            max_queue=MOST_WAITING,
            at_once=number,
            alike=alike,
        )

    async def run(self, priority: Priority, stage: str, call: Callable[..., T], *args: Any) -> T:
        """Call a function in a thread, unless its caller is cancelled or too late before that.

        Raises its errors, but RuntimeError for one that would end this process or its event loop;
        DeadlineExceeded, Overloaded and Unavailable.
        """
        return await self.submit(priority, stage, partial(call, *args))

    async def submit(
        self,
        priority: Priority,
        stage: str,
        call: Callable[[], T],
        work: float = 1,
        begun: float = 0.0,
    ) -> T:
        """Do as ``run`` does; ``work`` and ``begun`` as in ``Queue.submit``."""
        made = partial(contextvars.copy_context().run, _measured, stage, call)
        result: T = await self._queue.submit(made, priority, work, begun)
        return result

    async def drain(self, priority: Priority, stage: str, items: Iterator[T]) -> list[T]:
        """Return all ``items``, computed like steps."""
        return await self.run_steps(priority, stage, gathered(items))

    async def run_steps(
        self,
        priority: Priority,
        stage: str,
        steps: Steps[T],
        begun: float = 0.0,
        ask: Callable[[Decode], Awaitable[list[MaskSet]]] | None = None,
    ) -> T:
        """Run the steps in turns of TURN_S and ``ask`` their questions; return the result.

        ``begun`` as in ``Claim``. Between two turns others can use the thread, and cancellation
        takes effect. Raises the errors of the steps, of ``ask`` and of ``run``.
        """
        since = begun or monotonic()
        masks: Any = None
        try:
            while True:
                turn = partial(_turn, steps, masks)
                step = await self.submit(priority, stage, turn, begun=begun)
                if isinstance(step, Done):
                    return step.result
                masks, begun = [], since
                if step is not None and ask is not None:
                    masks = await ask(step)
        except BaseException:
            with suppress(RuntimeError):  # the threads have ended
                self._pool.submit(steps.close)  # the steps may clean up, which belongs there
            raise

    async def image_key(self, priority: Priority, encoded: bytes) -> str:
        """Return ``samclip_core.io.image.image_key``, for a large file from a thread."""
        if len(encoded) > SMALL_FILE:
            return await self.run(priority, "hash", image.image_key, encoded)
        return _measured("hash", partial(image.image_key, encoded))

    def close(self, wait: bool = False) -> None:
        """End the threads after the calls that run, and refuse those that wait."""
        self._queue.refuse()
        self._pool.shutdown(wait=wait, cancel_futures=not wait)


async def run(pool: Executor, stage: str, call: Callable[[], T]) -> T:
    """Call a function in a thread of a device; only a queue does, which knows whose turn it is."""
    made = partial(contextvars.copy_context().run, _measured, stage, call)
    return await asyncio.get_running_loop().run_in_executor(pool, made)


async def _hold(holds: Sequence[Callable[[], Awaitable[None]]]) -> list[None]:
    await holds[0]()
    return [None]


async def _call(pool: Executor, calls: Sequence[Callable[[], T]]) -> list[T]:
    loop = asyncio.get_running_loop()
    return [await loop.run_in_executor(pool, call) for call in calls]


def _measured(stage: str, call: Callable[[], T]) -> T:
    try:
        with metrics.stage(stage):
            return call()
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, _NOT_FUTURES):
            raise
        raise RuntimeError(f"the work raised {error!r}") from error


def _turn(steps: Steps[T], masks: Any) -> Any:
    """Do steps for TURN_S, or until there is a question or the result."""
    end = monotonic() + TURN_S
    step = advance(steps, masks)
    while step is None and monotonic() < end:
        step = advance(steps, [])
    return step
