"""The connection to Redis: a client for its URL, and commands that fail early instead of waiting.

The URL names one server, a service behind Sentinel, or a Cluster:

    redis://[user:password@]host:port/db              rediss:// with TLS
    unix://[user:password@]/path/to/socket?db=0
    redis+sentinel://[user:password@]host:port,host:port/service/db
    redis+cluster://[user:password@]host:port         rediss+cluster:// with TLS

redis-py documents the options, ``?name=value``, such as ``ssl_ca_certs``.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from redis import RedisError
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff

from services.observability import metrics, tracing
from services.settings import SettingsError

Client: TypeAlias = Redis | RedisCluster
T = TypeVar("T")

FORMS = "redis://, rediss://, unix://, redis+sentinel://, redis+cluster:// or rediss+cluster://"
SENTINEL_PORT = 26379
MAX_CONNECTIONS = 1024  # far above the number of concurrent requests, none of which may fail
PROBE = "samclip:probe"
FAILURES = 3
"""Consecutive failures that open a breaker."""
PROBE_S = 1.0
"""Interval between two probes in the background."""

logger = logging.getLogger(__name__)


class Unanswered(Exception):
    """Redis did not answer in time, returned an error, or has failed too often to be called."""


class RedisLink:
    """A connection to Redis for one event loop, made at the first command.

    ``read`` and ``write`` send a command of ``client``. They have separate breakers, because a full
    Redis or a read-only replica still answers reads. ``timeout_s`` limits each command, including a
    new connection. Raises SettingsError for an invalid URL.
    """

    def __init__(self, url: str, timeout_s: float):
        self.client: Any = connect(url, timeout_s)  # Redis and RedisCluster share no type
        self.read = Breaker("read", self.client.ping, timeout_s)
        self.write = Breaker("write", partial(self.client.set, PROBE, b"", px=1000), timeout_s)
        self._timeout_s = timeout_s

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
        with suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(self._timeout_s):
                found = await self.client.info("memory")
            nodes = [found] if "used_memory" in found else [*found.values()]  # of a Cluster
            metrics.REDIS_BYTES.labels("used").set(sum(node["used_memory"] for node in nodes))
            metrics.REDIS_BYTES.labels("limit").set(sum(node["maxmemory"] for node in nodes))

    async def close(self) -> None:
        self.read.close()
        self.write.close()
        await close(self.client)


class Breaker:
    """A circuit breaker: sends commands with a timeout each, and none while Redis keeps failing.

    While it is ``closed``, commands are sent. ``probe`` tests in the background whether Redis works
    again. For one event loop.
    """

    def __init__(
        self,
        access: Literal["read", "write"],
        probe: Callable[[], Awaitable[object]],
        timeout_s: float,
    ):
        self._access = access
        self._probe = probe
        self._timeout_s = timeout_s
        self._failures = 0
        self._healing: asyncio.Task[None] | None = None
        self._set(closed=True)

    async def __call__(self, command: Callable[..., Awaitable[T]], *args: Any, **options: Any) -> T:
        """Send a command and return its answer. Raises only Unanswered."""
        if not self.closed:
            raise Unanswered("Redis has failed repeatedly")
        try:
            with tracing.span(f"redis {getattr(command, '__name__', '')}", tracing.CLIENT):
                async with asyncio.timeout(self._timeout_s):
                    answer = await command(*args, **options)
        except Exception as error:  # no library error may fail a request
            reason = str(error) or type(error).__name__
            self._failed(reason)
            raise Unanswered(reason) from error
        self._failures = 0
        return answer

    def close(self) -> None:
        if self._healing is not None:
            self._healing.cancel()

    def _failed(self, reason: str) -> None:
        """Count a failure; after FAILURES consecutive ones, open the breaker and start to probe."""
        self._failures += 1
        if self.closed and self._failures >= FAILURES:
            self._set(closed=False)
            logger.warning("Redis %ss disabled after repeated failures: %s", self._access, reason)
            self._healing = asyncio.create_task(self._heal())

    async def _heal(self) -> None:
        while not self.closed:
            await asyncio.sleep(PROBE_S)
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._probe()
            except Exception:
                logger.debug("Redis %ss: probe failed", self._access, exc_info=True)
            else:
                self._set(closed=True)
                self._failures = 0
                logger.warning("Redis %ss enabled again", self._access)

    def _set(self, closed: bool) -> None:
        self.closed = closed
        metrics.REDIS_UP.labels(self._access).set(closed)


def connect(url: str, timeout_s: float) -> Client:
    """Return a client that connects at its first command and never retries a command.

    Raises SettingsError for an invalid URL; the message does not contain the password.
    """
    options: dict[str, Any] = {
        "protocol": 2,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),  # callers continue without an answer
    }
    scheme = url.partition("://")[0]
    try:
        _check_ca(urlsplit(url))
        match scheme:
            case "redis" | "rediss" | "unix":
                return Redis.from_url(url, max_connections=MAX_CONNECTIONS, **options)
            case "redis+cluster" | "rediss+cluster":
                plain = url.replace("+cluster", "", 1)
                return RedisCluster.from_url(plain, max_connections=MAX_CONNECTIONS, **options)
            case "redis+sentinel":
                return _behind_sentinel(urlsplit(url), options)
    except ValueError as error:
        raise SettingsError(f"redis_url cannot be read: {error}") from error
    raise SettingsError(f"redis_url begins with {scheme[:20]!r}, expected {FORMS}")


async def close(client: Client) -> None:
    await client.aclose()
    if isinstance(client, Redis) and isinstance(client.connection_pool, SentinelConnectionPool):
        for sentinel in client.connection_pool.sentinel_manager.sentinels:
            await sentinel.aclose()


def _check_ca(parts: SplitResult) -> None:
    """Raise ValueError if the file of trusted certificates is missing, which redis-py hides."""
    for file in parse_qs(parts.query).get("ssl_ca_certs", []):
        if not Path(file).is_file():
            raise ValueError(f"ssl_ca_certs is {file}, which is no file here")


def _behind_sentinel(parts: SplitResult, options: dict[str, Any]) -> Redis:
    """Return a client that looks up the master of a service for each new connection."""
    login, _, hosts = parts.netloc.rpartition("@")
    service, _, db = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError(
            "redis+sentinel:// needs a service: use redis+sentinel://host:port/service/db"
        )
    user, _, password = (unquote(part) or None for part in login.partition(":"))
    sentinels = [
        (split.hostname or "localhost", split.port or SENTINEL_PORT)
        for split in (urlsplit(f"//{host}") for host in hosts.split(","))
    ]
    sentinel = Sentinel(sentinels, sentinel_kwargs=options, **options)
    return sentinel.master_for(service, db=int(db or 0), username=user, password=password)
