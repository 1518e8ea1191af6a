"""Choose the engine of the index: Redis if one with vector sets is configured, else files."""

import asyncio
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from time import monotonic
from typing import Any, TypeVar

from samclip_core.answers.steps import Done, Steps, advance
from services.batching import threads
from services.batching.queue import Queue
from services.request.context import Priority
from services.retrieval.embedded import EmbeddedCollections
from services.retrieval.index import Collections
from services.retrieval.redis_engine import VectorSets
from services.retrieval.vector_sets import connect, has_vector_sets
from services.settings import Settings

ONE_SERVER = ("redis", "rediss", "unix")
"""URL schemes of a single server. With a Sentinel URL, collections stay in files."""
CLUSTER = ("redis+cluster", "rediss+cluster")
"""Those of a Cluster, which needs collections in shards."""
PAUSE_S = 0.0005
"""How long no graph is built, per item that is added. Items that arrive faster than a graph takes
them, some 2,000 per second, are stored first."""
LONGEST_PAUSE_S = 30.0
"""How long additions may put off the graphs of all collections."""
TURN = 100
"""Builds that are then done before they may do so again, even while calls wait: some 2 s."""

MAX_CALLS = 1024
"""More than a replica can have: Serve limits its requests, and each has one call at a time."""
STEP_S = 0.02
"""How long a search works before other calls get their turn."""

logger = logging.getLogger(__name__)
T = TypeVar("T")


class OwnIndex:
    """The index of this process, shared by all checkpoints that it serves.

    Use it only in its dedicated thread, through ``run`` and ``run_steps``. Tenants take turns.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self._thread = ThreadPoolExecutor(1, "index")
        self._queue = Queue[Callable[[], Any], Any](
            partial(_call, self._thread), part="index", max_queue=MAX_CALLS
        )
        self._calls = 0  # that run or wait
        self._building = False
        self._pause_until = 0.0
        self._timer = False  # runs until the pause is over
        self._overdue_at = 0.0
        self._owed = 0  # builds to do before a pause may last longer than that
        self._opened: Collections | None = None

    def __del__(self) -> None:
        # A running call may hold the last reference, and then this thread cannot join itself.
        with suppress(RuntimeError):
            self._thread.shutdown(wait=True)
        self._queue.stop()
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
        with self._called():
            result: T = await self._queue.submit(function, priority, work)
            return result

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

        with self._called():
            try:
                done = await self._queue.submit(turn, priority)
                while done is None:
                    done = await self._queue.submit(turn, priority, begun=since)
            finally:
                if done is None:
                    with suppress(RuntimeError):  # the thread was shut down
                        self._thread.submit(_close, begun)
            return done.result

    @contextmanager
    def _called(self) -> Iterator[None]:
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            self._build_later()

    def put_off(self, items: int) -> None:
        """Build no graph for a moment, because items are being added, and more may follow."""
        now = monotonic()
        if not self._owed:
            self._overdue_at, self._owed = now + LONGEST_PAUSE_S, TURN
        pause_until = min(now + items * PAUSE_S, self._overdue_at)
        self._pause_until = max(self._pause_until, pause_until)
        if not self._timer:
            self._build_after_pause()

    def _build_after_pause(self) -> None:
        """Build once the pause is over. Loops call a little early, and the pause may grow."""
        left_s = self._pause_until - monotonic()
        self._timer = left_s > 0
        if self._timer:
            loop = asyncio.get_running_loop()
            loop.call_later(left_s, _if_it_is_used, weakref.WeakMethod(self._build_after_pause))
        else:
            self._build_later()

    def _must_wait(self) -> bool:
        now = monotonic()
        if self._owed and now >= self._overdue_at:
            return False
        return self._calls > 0 or now < self._pause_until

    def _build_later(self) -> None:
        """Build graphs in the thread while no call waits; the reference does not keep the index."""
        if not (self._must_wait() or self._building):
            self._building = True
            with suppress(RuntimeError):  # the thread was shut down
                self._thread.submit(_if_it_is_used, weakref.WeakMethod(self._build))

    def _build(self) -> None:
        self._building = False
        if self._must_wait() or self._opened is None:
            return
        more = self._opened.build()
        self._owed = max(0, self._owed - 1) if more else 0
        if more:
            self._build_later()


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


def _if_it_is_used(method: "weakref.WeakMethod[Callable[[], None]]") -> None:
    if (found := method()) is not None:
        found()


def may_use_redis(settings: Settings) -> bool:
    """Return whether to store collections in Redis, provided that it has vector sets."""
    scheme = (settings.redis_url or "").partition("://")[0]
    return scheme in ONE_SERVER or (scheme in CLUSTER and settings.collection_shards > 0)


def open_index(settings: Settings, digest: str, dimension: int) -> Collections:
    """Open the collections, for vectors of a model.

    Raises Unavailable while Redis does not answer: it may have collections, and opening files
    instead would create a second set under the same names.
    """
    if settings.redis_url:
        reason = (
            "redis_url names several servers, and vector sets need a single server, or a Cluster "
            "and collection_shards"
        )
        if may_use_redis(settings):
            client = connect(settings.redis_url)
            if has_vector_sets(client):
                return VectorSets(client, digest, dimension, settings.collection_shards)
            client.close()
            reason = "the Redis at redis_url has no vector sets, which need version 8"
        logger.warning("%s: collections are stored in %s instead", reason, settings.index_dir)
    return EmbeddedCollections(settings.index_dir, digest, dimension)
