"""Connect to the Redis of a URL: one server, a service behind Sentinel, or a Cluster.

    redis://[user:password@]host:port/db              rediss:// with TLS
    unix://[user:password@]/path/to/socket?db=0
    redis+sentinel://[user:password@]host:port,host:port/service/db
    redis+cluster://[user:password@]host:port         rediss+cluster:// with TLS

redis-py documents the options, ``?name=value``, such as ``ssl_ca_certs``.
"""

from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff

from services.settings import SettingsError

Client: TypeAlias = Redis | RedisCluster

FORMS = "redis://, rediss://, unix://, redis+sentinel://, redis+cluster:// or rediss+cluster://"
SENTINEL_PORT = 26379
MAX_CONNECTIONS = 1024  # far above the number of concurrent requests, none of which may fail


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
    """Close all connections, also those to sentinels, which redis-py leaves open."""
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
        (split.hostname, split.port or SENTINEL_PORT)
        for split in (urlsplit(f"//{host}") for host in hosts.split(","))
    ]
    sentinel = Sentinel(sentinels, sentinel_kwargs=options, **options)
    return sentinel.master_for(service, db=int(db or 0), username=user, password=password)
