"""Choose the engine of the index: Redis if one with vector sets is configured, else files."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context
from functools import partial
from time import monotonic
from typing import Any, TypeVar

from samclip_core.answers.steps import Done, Steps, advance
from samclip_core.errors import Overloaded
from services.batching import threads
from services.batching.queue import Queue
from services.request.context import Priority
from services.retrieval.embedded import EmbeddedCollections
from services.retrieval.index import Collections
from services.retrieval.redis_client import connect, has_vector_sets
from services.retrieval.vector_sets import VectorSets
from services.settings import Settings

ONE_SERVER = ("redis", "rediss", "unix")
"""URL schemes of a single server. With others, collections stay in files."""
BUILDS = Priority(bulk=True, tenant="+graphs")
"""Of the builds of graphs: they take turns with the items that tenants add, after other calls."""
BUILD_WORK = 20
"""Work of a build, relative to a small call: items that are added meanwhile are stored first."""
MAX_CALLS = 1024
"""More than a replica can have: Serve limits its requests, and each has one call at a time."""
STEP_S = 0.02
"""How long a search works before other calls get their turn."""

logger = logging.getLogger(__name__)
T = TypeVar("T")


class IndexThread:
    """The index of this process, shared by all checkpoints that it serves.

    Use it only in its dedicated thread, through ``run`` and ``run_steps``. Tenants take turns.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self._thread = ThreadPoolExecutor(1, "index")
        self._queue = Queue[Callable[[], Any], Any](
            partial(_call, self._thread), part="index", max_queue=MAX_CALLS
        )
        self._builder: asyncio.Task[None] | None = None
        self._opened: Collections | None = None

    def __del__(self) -> None:
        # A running call may hold the last reference, and then this thread cannot join itself.
        with suppress(RuntimeError):
            self._thread.shutdown(wait=True)
        self._queue.stop()
        if self._builder is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._builder.get_loop().call_soon_threadsafe(self._builder.cancel)
        if self._opened is not None:
            self._opened.close()

    def collections(self, digest: str, dimension: int) -> Collections:
        """Return all collections, for vectors of a model; open the index on first use.

        Raises Unavailable if it cannot be opened; the next call tries again.
        """
        if self._opened is None:
            self._opened = open_index(self._settings, digest, dimension)
        return self._opened.of_model(digest, dimension)

    async def run(self, priority: Priority, function: Callable[[], T], work: float = 1) -> T:
        """Call a function; ``work`` is relative to a small one. Raises the errors of a queue."""
        try:
            result: T = await self._queue.submit(function, priority, work)
            return result
        finally:
            if self._opened is not None and (self._builder is None or self._builder.done()):
                # An empty context and no reference to this: it is of no request.
                build = _build(self._queue, self._opened)
                self._builder = asyncio.create_task(build, context=Context())

    async def run_steps(self, priority: Priority, function: Callable[[], Steps[T]]) -> T:
        """Call a function and do its steps, between which other calls get their turn.

        Of the same tenant, these are new calls, and the steps of calls that began earlier.
        """
        since, done = monotonic(), None
        begun: list[Steps[T]] = []

        def turn() -> Done[T] | None:
            if not begun:
                begun.append(function())
            return _turn(begun[0])

        try:
            done = await self._queue.submit(turn, priority)
            while done is None:
                done = await self._queue.submit(turn, priority, begun=since)
        finally:
            if done is None:
                with suppress(RuntimeError):  # the thread was shut down
                    self._thread.submit(_close, begun)
        return done.result


async def _call(thread: ThreadPoolExecutor, calls: Sequence[Callable[[], T]]) -> list[T]:
    return [await threads.run(thread, "index", call) for call in calls]


def _turn(steps: Steps[T]) -> Done[T] | None:
    """Do steps for STEP_S; return the result if they are done."""
    end = monotonic() + STEP_S
    while not isinstance(step := advance(steps, None), Done):
        if monotonic() >= end:
            return None
    return step


def _close(begun: Sequence[Steps[T]]) -> None:
    for steps in begun:
        steps.close()


async def _build(queue: Queue[Callable[[], Any], Any], index: Collections) -> None:
    """Build graphs until there is nothing to do; the next call goes on if the queue is full."""
    with suppress(Overloaded, RuntimeError):  # RuntimeError: the thread was shut down
        while await queue.submit(index.build, BUILDS, BUILD_WORK):
            pass


def may_use_redis(settings: Settings) -> bool:
    """Return whether to store collections in Redis, provided that it has vector sets."""
    return (settings.redis_url or "").partition("://")[0] in ONE_SERVER


def open_index(settings: Settings, digest: str, dimension: int) -> Collections:
    """Open the collections, for vectors of a model.

    Raises Unavailable while Redis does not answer: it may have collections, and opening files
    instead would create a second set under the same names.
    """
    if settings.redis_url:
        reason = "redis_url names several servers, and vector sets need a single server"
        if may_use_redis(settings):
            client = connect(settings.redis_url)
            if has_vector_sets(client):
                return VectorSets(client, digest, dimension)
            client.close()
            reason = "the Redis at redis_url has no vector sets, which need version 8"
        logger.warning("%s: collections are stored in %s instead", reason, settings.index_dir)
    return EmbeddedCollections(settings.index_dir, digest, dimension)
