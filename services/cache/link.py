"""The way to Redis: every exchange is bounded in time, and none is tried while Redis keeps failing.

Reading and writing fail apart: a full Redis, or a read-only replica, still answers.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar

from services.cache.breaker import Breaker
from services.cache.connection import close, connect
from services.observability import metrics, tracing

PROBE = "samclip:probe"

T = TypeVar("T")


class Unanswered(Exception):
    """Redis did not answer in time, refused, or has failed so often that it was not asked."""


class RedisLink:
    """For one event loop; connects when it is first asked. Raises SettingsError for a bad URL.

    ``timeout_s`` bounds each exchange, a new connection included.
    """

    def __init__(self, url: str, timeout_s: float):
        self.client: Any = connect(url, timeout_s)  # Redis and RedisCluster: no type has both
        self._timeout_s = timeout_s
        up = metrics.REDIS_UP.labels
        self.reads = Breaker("Redis does not answer", self._try_read, up("read"))
        self.writes = Breaker("Redis takes no writes", self._try_write, up("write"))

    async def read(self, command: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Send a command of ``client``. Raises Unanswered, and nothing else."""
        return await self._ask(self.reads, command, *args)

    async def write(self, command: Callable[..., Awaitable[T]], *args: Any, **options: Any) -> T:
        """Send a command that writes. Raises Unanswered, and nothing else."""
        return await self._ask(self.writes, command, *args, **options)

    async def state(self) -> Literal["up", "down"]:
        """Whether Redis answers now."""
        try:
            await self.read(self.client.ping)
        except Unanswered:
            return "down"
        return "up"

    async def close(self) -> None:
        self.reads.close()
        self.writes.close()
        await close(self.client)

    async def _ask(
        self, breaker: Breaker, command: Callable[..., Awaitable[T]], *args: Any, **options: Any
    ) -> T:
        if not breaker.closed:
            raise Unanswered("Redis has kept failing")
        try:
            with tracing.span(f"redis {getattr(command, '__name__', '')}", tracing.CLIENT):
                async with asyncio.timeout(self._timeout_s):
                    answer = await command(*args, **options)
        except Exception as error:  # whatever a library raises, no request fails of it
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
