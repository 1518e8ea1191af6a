"""The embedding cache: a tier in memory, a tier in Redis, and each image encoded only once.

``get`` looks in memory, then in Redis. After a miss, the callers in a process share one task
(``SingleFlight``), and of all processes one has the ``lease``: it encodes the image and ``put``s
its entries, which the others then find.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from samclip.v1 import samclip_pb2 as pb

from services.batching.priority import Priority
from services.cache.entry import Entries, contract
from services.cache.memory import MemoryTier
from services.observability import metrics
from services.settings import Settings

if TYPE_CHECKING:
    from services.cache.shared import SharedTier

CACHE_KEY = re.compile("([0-9a-f]{64}|[0-9A-F]{64})(:[0-9]+)?")
"""Cache keys that may be in Redis: upper case if hashed with a tenant; the number is a side."""

T = TypeVar("T")


@dataclass(eq=False)
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    waiting: int = 0


class SingleFlight(Generic[T]):
    """Work in progress by key. Concurrent callers with the same key share one task.

    A task is cancelled only when all its callers are.
    """

    def __init__(self) -> None:
        self._flights: dict[str, _Flight[T]] = {}

    async def run(self, key: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return the result of ``work``, or raise its error. Starts it unless it is running."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.create_task(work()))
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting and self._flights.get(key) is flight:
                del self._flights[key]
                flight.task.cancel()


class EmbeddingCache:
    """A cache of one contract for one event loop: in ``memory``, then in ``shared``."""

    def __init__(self, memory: MemoryTier, shared: "SharedTier | None" = None, contract: str = ""):
        self.memory = memory
        self._shared = shared
        self._contract = contract
        self._reads = SingleFlight[Entries]()

    async def get(
        self,
        cache_key: str,
        outputs: Sequence[pb.Output],
        priority: Priority,
        shared: bool = True,
    ) -> Entries | None:
        """Return all ``outputs``, or None if one of them is missing. Never fails.

        Without ``shared``, looks only in this process.
        """
        with metrics.stage("cache_l1"):
            found = self.memory.get((self._contract, cache_key), outputs)
        missing = [output for output in outputs if output not in found]
        if missing and shared and self._shared is not None and CACHE_KEY.fullmatch(cache_key):
            with metrics.stage("cache_l2"):
                fetch = partial(self._fetch, self._shared, cache_key, missing, priority)
                found |= await self._reads.run(f"{cache_key}:{missing}", fetch)
        return {output: found[output] for output in outputs} if len(found) == len(outputs) else None

    def put(self, cache_key: str, entries: Entries) -> None:
        """Store entries in this process now, and in Redis in the background."""
        self.keep(cache_key, entries)
        if self._shared is not None:
            self._shared.put(cache_key, entries)

    def keep(self, cache_key: str, entries: Entries) -> None:
        """Store entries in this process alone."""
        self.memory.put((self._contract, cache_key), entries)

    @asynccontextmanager
    async def lease(
        self, cache_key: str, outputs: Sequence[pb.Output], priority: Priority
    ) -> AsyncIterator[Entries | None]:
        """Wait until this process must encode an image, or another one has encoded it.

        Yields all ``outputs`` from another process that shares the Redis, or None: the caller then
        encodes the image and ``put``s them.
        """
        if self._shared is None:
            yield None
            return
        async with self._shared.lease(cache_key, outputs, priority) as entries:
            if entries is not None:
                self.keep(cache_key, entries)
            yield entries

    async def state(self) -> Literal["up", "down", "off"]:
        """Return the state of Redis; "off" without Redis."""
        return await self._shared.state() if self._shared else "off"

    async def close(self) -> None:
        """Finish pending writes and disconnect from Redis."""
        if self._shared:
            await self._shared.close()

    async def _fetch(
        self,
        shared: "SharedTier",
        cache_key: str,
        outputs: Sequence[pb.Output],
        priority: Priority,
    ) -> Entries:
        found = await shared.get(cache_key, outputs, priority)
        self.keep(cache_key, found)
        return found


Caches = Callable[[str], EmbeddingCache]
"""Return the cache for one precision and one set of graphs, which ``entry.computed`` names."""


def of_settings(
    settings: Settings, memory: MemoryTier, digest: str, image_size: int, share: bool = True
) -> Caches:
    """Return a factory of caches for the backbone or a head; without ``share`` they use no Redis.

    Processes that serve the checkpoint ``digest`` with the same settings share the entries that
    they compute in the same way. All caches of the factory share one connection to Redis. Raises
    SettingsError for an invalid redis_url.
    """
    link: Any = None
    if settings.redis_url and share:
        # The libraries of Redis take a moment to import.
        from services.cache.connection import RedisLink
        from services.cache.shared import SharedTier

        link = RedisLink(settings.redis_url, settings.redis_timeout_ms / 1000)

    def cache(computed: str) -> EmbeddingCache:
        name = contract(digest, image_size, computed)
        return EmbeddingCache(memory, SharedTier(link, name) if link else None, name)

    return cache
