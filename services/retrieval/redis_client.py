"""The Redis of the collections: its client, its failures, and the scripts that change it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

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
REFUSALS = (
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.NoPermissionError,
)


def connect(url: str) -> redis.Redis:
    """Return a client of a server, which connects on first use, and reconnects."""
    return redis.Redis.from_url(
        url,
        protocol=2,
        decode_responses=True,
        socket_connect_timeout=CONNECT_S,
        socket_timeout=ANSWER_S,
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    )


def has_vector_sets(client: redis.Redis) -> bool:
    """Return whether the server supports vector sets. Raises Unavailable."""
    with answers():
        try:
            client.vset().vcard(key_of("", "vectors"))
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
    except (redis.ConnectionError, redis.TimeoutError) as error:
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
local found, found_dtype = unpack(redis.call('HMGET', KEYS[1], 'digest', 'dtype'))
found_dtype = found_dtype or ''  -- false in a collection without a recorded precision
local added = 0
if (found == digest or found == string.sub(digest, 1, DIGITS)) and found_dtype == dtype then
    redis.call('HSET', KEYS[1], 'digest', digest)
    added = redis.call('ZADD', KEYS[3], 0, id)
    if added == 0 then
        redis.call('VREM', KEYS[2], id)
    end
    redis.call('VADD', KEYS[2], 'FP32', vector, id, 'NOQUANT', 'SETATTR', attributes)
    redis.call('SADD', KEYS[6], name)
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
