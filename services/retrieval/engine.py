"""Choose the engine of the index: Redis if one with vector sets is configured, else files."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from typing import TypeVar

from samclip_core.answers.steps import Steps
from samclip_core.errors import Overloaded
from services.batching.priority import Priority
from services.batching.threads import Threads
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

logger = logging.getLogger(__name__)
T = TypeVar("T")


class IndexThread:
    """The index of this process, shared by all checkpoints that it serves.

    Use it only in its dedicated thread, through ``run`` and ``run_steps``. Tenants take turns.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self._threads = Threads("index", 1, alike=True)
        self._builder: asyncio.Task[None] | None = None
        self._opened: Collections | None = None

    def __del__(self) -> None:
        # A running call may hold the last reference, and then this thread cannot join itself.
        with suppress(RuntimeError):
            self._threads.close(wait=True)
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
            return await self._threads.submit(priority, "index", function, work)
        finally:
            if self._opened is not None and (self._builder is None or self._builder.done()):
                # An empty context and no reference to this: it is of no request.
                build = _build(self._threads, self._opened)
                self._builder = asyncio.create_task(build, context=Context())

    async def run_steps(self, priority: Priority, function: Callable[[], Steps[T]]) -> T:
        """Call a function and do its steps, between which other calls get their turn.

        Of the same tenant, these are new calls, and the steps of calls that began earlier.
        """
        return await self._threads.run_steps(priority, "index", _begun(function))


def _begun(function: Callable[[], Steps[T]]) -> Steps[T]:
    """Call a function in the first of its steps."""
    return (yield from function())


async def _build(thread: Threads, index: Collections) -> None:
    """Build graphs until there is nothing to do; the next call goes on if the queue is full."""
    with suppress(Overloaded, RuntimeError):  # RuntimeError: the thread was shut down
        while await thread.submit(BUILDS, "index", index.build, BUILD_WORK):
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
