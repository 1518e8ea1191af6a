"""Send commands to Redis with a timeout each, and none while Redis keeps failing.

Reads and writes have separate breakers: a full Redis or a read-only replica still answers reads.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Literal, TypeVar

import redis

from services.cache.breaker import Breaker
from services.cache.connection import close, connect
from services.observability import metrics, tracing

PROBE = "samclip:probe"

T = TypeVar("T")


class Unanswered(Exception):
    """Redis did not answer in time, returned an error, or has failed too often to be called."""


class RedisLink:
    """A connection to Redis for one event loop, made at the first command.

    ``timeout_s`` limits each command, including a new connection. Raises SettingsError for an
    invalid URL.
    """

    def __init__(self, url: str, timeout_s: float):
        self.client: Any = connect(url, timeout_s)  # Redis and RedisCluster share no type
        self._timeout_s = timeout_s
        up = metrics.REDIS_UP.labels
        self.reads = Breaker("Redis reads", self._try_read, up("read"))
        self.writes = Breaker("Redis writes", self._try_write, up("write"))

    async def read(self, command: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Send a command of ``client``. Raises only Unanswered."""
        return await self._ask(self.reads, command, *args)

    async def write(self, command: Callable[..., Awaitable[T]], *args: Any, **options: Any) -> T:
        """Send a command that writes. Raises only Unanswered."""
        return await self._ask(self.writes, command, *args, **options)

    async def state(self) -> Literal["up", "down"]:
        """Return whether Redis answers now."""
        try:
            await self.read(self.client.ping)
        except Unanswered:
            return "down"
        await self._measure()
        return "up"

    async def _measure(self) -> None:
        """Publish the memory of Redis, whose user may not be allowed to ask for it."""
        with suppress(redis.RedisError, OSError, TimeoutError):
            async with asyncio.timeout(self._timeout_s):
                found = await self.client.info("memory")
            nodes = [found] if "used_memory" in found else [*found.values()]  # of a Cluster
            metrics.REDIS_BYTES.labels("used").set(sum(node["used_memory"] for node in nodes))
            metrics.REDIS_BYTES.labels("limit").set(sum(node["maxmemory"] for node in nodes))

    async def close(self) -> None:
        self.reads.close()
        self.writes.close()
        await close(self.client)

    async def _ask(
        self, breaker: Breaker, command: Callable[..., Awaitable[T]], *args: Any, **options: Any
    ) -> T:
        if not breaker.closed:
            raise Unanswered("Redis has failed repeatedly")
        try:
            with tracing.span(f"redis {getattr(command, '__name__', '')}", tracing.CLIENT):
                async with asyncio.timeout(self._timeout_s):
                    answer = await command(*args, **options)
        except Exception as error:  # no library error may fail a request
            breaker.failed(error)
            raise Unanswered(str(error) or type(error).__name__) from error
        breaker.succeeded()
        return answer

    async def _try_read(self) -> None:
        async with asyncio.timeout(self._timeout_s):
            await self.client.ping()

    async def _try_write(self) -> None:
        async with asyncio.timeout(self._timeout_s):
            await self.client.set(PROBE, b"", px=1000)
