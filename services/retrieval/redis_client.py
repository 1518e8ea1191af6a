"""The Redis of the collections: its client, its failures, and the scripts that change it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from samclip_core.errors import Unavailable
from samclip_core.io import checkpoint

logger = logging.getLogger(__name__)

NAMES = "samclip:index"
KINDS = "model", "vectors", "ids", "counts", "objects"
"""The keys of a collection, in the order of the scripts."""
CONNECT_S, ANSWER_S = 1, 5
Client = redis.Redis | redis.RedisCluster
MOVING = (
    redis.exceptions.RedisClusterException,
    redis.exceptions.AskError,
    redis.exceptions.TryAgainError,
    redis.exceptions.ClusterError,
)
"""Errors of a Cluster whose slots move to other servers, or are served by none."""
REFUSALS = (
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.NoPermissionError,
)


def connect(url: str) -> Client:
    """Return a client, which reconnects; that of one server connects on first use.

    Raises Unavailable if no server of a Cluster answers.
    """
    options: dict[str, Any] = {
        "protocol": 2,
        "decode_responses": True,
        "socket_connect_timeout": CONNECT_S,
        "socket_timeout": ANSWER_S,
        "retry": Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    }
    if "+cluster" not in url.partition("://")[0]:
        return redis.Redis.from_url(url, **options)
    with answers():
        return redis.RedisCluster.from_url(url.replace("+cluster", "", 1), **options)


def server_of(client: Client, key: str) -> redis.Redis:
    """Return a client of the server that has this key."""
    if isinstance(client, redis.RedisCluster):
        with answers():
            return client.get_redis_connection(client.get_node_from_key(key))
    return client


def has_vector_sets(client: Client) -> bool:
    """Return whether the servers support vector sets. Raises Unavailable."""
    with answers():
        try:
            server_of(client, key_of("", "vectors")).vset().vcard(key_of("", "vectors"))
        except redis.ResponseError as error:
            if str(error).startswith("unknown command"):
                return False
            raise
    return True


@contextmanager
def answers() -> Iterator[None]:
    """Raise Unavailable if Redis fails; errors that are our own fault pass through."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError, *MOVING) as error:
        logger.warning("the index in Redis failed: %s", error)
        raise Unavailable("the index is unavailable: Redis does not answer, try again") from error
    except redis.ResponseError as error:
        if not isinstance(error, REFUSALS) and "MISCONF" not in str(error):
            raise
        logger.warning("the index in Redis failed: %s", error)
        raise Unavailable(
            "the index is unavailable: Redis is full, read-only or forbids this; see the log"
        ) from error


def key_of(name: str, kind: str) -> str:
    return f"{NAMES}:{{{name}}}:{kind}"


# The script adds one item atomically and checks the model in the same step, because a service with
# another model may just have re-created the collection. It adds one item per call, because Redis
# serves no other client during a script, and an insertion into the graph takes about 1 ms. It
# removes an item before it adds it again, because Redis 8.0 neither logs nor replicates a VADD that
# changes an element.
UPSERT = """
local name, digest, dimension, dtype, id, vector, attributes, count, objects = unpack(ARGV)
if redis.call('HSETNX', KEYS[1], 'digest', digest) == 1 then
    redis.call('HSET', KEYS[1], 'dimension', dimension, 'dtype', dtype)
end
local found, found_dtype, word = unpack(redis.call('HMGET', KEYS[1], 'digest', 'dtype', 'word'))
found_dtype = found_dtype or ''  -- false in a collection without a recorded precision
if word then  -- another process has just made it in shards
    return {found, found_dtype, -1}
end
local added = 0
if (found == digest or found == string.sub(digest, 1, DIGITS)) and found_dtype == dtype then
    redis.call('HSET', KEYS[1], 'digest', digest)
    added = redis.call('ZADD', KEYS[3], 0, id)
    if added == 0 then
        redis.call('VREM', KEYS[2], id)
    end
    redis.call('VADD', KEYS[2], 'FP32', vector, id, 'NOQUANT', 'SETATTR', attributes)
    if KEYS[6] then
        redis.call('SADD', KEYS[6], name)
    end
    local before = redis.call('HGET', KEYS[4], id) or 0
    redis.call('HDEL', KEYS[4], id)
    redis.call('HDEL', KEYS[5], id)
    if count ~= '0' then
        redis.call('HSET', KEYS[4], id, count)
        redis.call('HSET', KEYS[5], id, objects)
    end
    redis.call('HINCRBY', KEYS[1], 'objects', count - before)
end
return {redis.call('HGET', KEYS[1], 'digest'), found_dtype, added}
""".replace("DIGITS", str(checkpoint.DIGITS))

# The script deletes one item atomically, with its objects.
DELETE = """
local id = ARGV[1]
redis.call('ZREM', KEYS[3], id)
local deleted = redis.call('VREM', KEYS[2], id)
local count = redis.call('HGET', KEYS[4], id)
if count then
    redis.call('HDEL', KEYS[4], id)
    redis.call('HDEL', KEYS[5], id)
    redis.call('HINCRBY', KEYS[1], 'objects', -count)
end
return deleted
"""

# The script records the model of a collection in shards, whose items are in other slots.
REGISTER = """
local digest, dimension, dtype, shards, word = unpack(ARGV)
if redis.call('HSETNX', KEYS[1], 'digest', digest) == 1 then
    redis.call('HSET', KEYS[1], 'dimension', dimension, 'dtype', dtype)
    redis.call('HSET', KEYS[1], 'shards', shards, 'word', word)
end
local found, found_dtype = unpack(redis.call('HMGET', KEYS[1], 'digest', 'dtype'))
if found == string.sub(digest, 1, DIGITS) and found_dtype == dtype then
    redis.call('HSET', KEYS[1], 'digest', digest)
end
return redis.call('HMGET', KEYS[1], 'digest', 'dtype', 'shards', 'word')
""".replace("DIGITS", str(checkpoint.DIGITS))
