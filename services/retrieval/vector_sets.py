"""The Redis engine: each collection is a vector set with two auxiliary keys.

A collection NAME has three keys, which share a cluster's slot and never expire:

    samclip:index:{NAME}:model      hash: the model's digest, the vectors' dimension and dtype
    samclip:index:{NAME}:vectors    vector set: id → unquantised float32 vector, and attributes
    samclip:index:{NAME}:ids        sorted set of all ids, for listing

``samclip:index`` is the set of all names. Redis has applied a change before it is acknowledged, and
applies each item atomically; durability across restarts depends on Redis' persistence settings.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import numpy as np
import redis
from numpy.typing import NDArray
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.retry import Retry

from samclip_core.errors import Unavailable
from services.retrieval.index import (
    OF,
    PAGE,
    UNRECORDED,
    Collections,
    Hit,
    Item,
    Listed,
    Query,
    check_dtype,
    check_model,
    no_item,
)

logger = logging.getLogger(__name__)

NAMES = "samclip:index"
CONNECT_S, ANSWER_S = 1, 5
REFUSALS = (
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.NoPermissionError,
)

# The script adds one item atomically and checks the model in the same step, because a service with
# another model may just have re-created the collection. It adds one item per call, because Redis
# serves no other client during a script, and an insertion into the graph takes about 1 ms.
_UPSERT = """
if redis.call('HSETNX', KEYS[1], 'digest', ARGV[1]) == 1 then
    redis.call('HSET', KEYS[1], 'dimension', ARGV[2], 'dtype', ARGV[3])
end
local digest, added = redis.call('HGET', KEYS[1], 'digest'), 0
local dtype = redis.call('HGET', KEYS[1], 'dtype') or ARGV[7]
if digest == ARGV[1] and dtype == ARGV[3] then
    added = redis.call('ZADD', KEYS[3], 0, ARGV[4])
    redis.call('VADD', KEYS[2], 'FP32', ARGV[5], ARGV[4], 'NOQUANT', 'SETATTR', ARGV[6])
    redis.call('SADD', KEYS[4], ARGV[8])
end
return {digest, dtype, added}
"""


def connect(url: str) -> redis.Redis:
    """Return a client for one thread at a time; it connects on first use and reconnects."""
    return redis.Redis.from_url(
        url,
        protocol=2,
        decode_responses=True,
        socket_connect_timeout=CONNECT_S,
        socket_timeout=ANSWER_S,
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    )


def has_vector_sets(client: redis.Redis) -> bool:
    """Return whether this server supports vector sets. Raises Unavailable."""
    with _answers():
        try:
            client.vset().vcard(_key("", "vectors"))
        except redis.ResponseError as error:
            if str(error).startswith("unknown command"):
                return False
            raise
    return True


@contextmanager
def _answers() -> Iterator[None]:
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


class VectorSet:
    """A collection in Redis. Not thread-safe."""

    def __init__(self, client: redis.Redis, name: str, digest: str, dimension: int, dtype: str):
        self.name, self.digest, self.dimension, self.dtype = name, digest, dimension, dtype
        self._client = client
        self._keys = tuple(_key(name, kind) for kind in ("model", "vectors", "ids"))
        self._model, self._vectors, self._ids = self._keys
        self._put = client.register_script(_UPSERT)

    def __len__(self) -> int:
        with _answers():
            return self._client.vset().vcard(self._vectors)

    def upsert(self, items: Iterable[Item]) -> int:
        """Add items, replacing those with the same ids; return how many it replaced.

        Raises InvalidRequest if the collection was re-created with another model or precision.
        """
        model = self.digest, self.dimension, self.dtype
        with _answers(), self._client.pipeline(transaction=False) as pipe:
            for item in items:
                vector = np.ascontiguousarray(item.vector_D, "<f4").tobytes()
                arguments = (*model, item.id, vector, _attributes(item), UNRECORDED, self.name)
                self._put((*self._keys, NAMES), arguments, client=pipe)
            done = pipe.execute()
        for digest, dtype, _ in done:
            self._check(digest, dtype)
            if digest != self.digest:  # nothing was added
                name = self.name.rpartition(OF)[2]
                raise Unavailable(f"collection {name!r} was made anew meanwhile: try again")
        return sum(not added for *_, added in done)

    def delete(self, ids: Sequence[str]) -> int:
        """Delete items; return how many there were. Unknown ids are ignored."""
        with _answers(), self._client.pipeline(transaction=False) as pipe:
            for id in ids:
                pipe.zrem(self._ids, id)
                pipe.vset().vrem(self._vectors, id)
            return sum(pipe.execute()[1::2])

    def holds(self, ids: Set[str]) -> int:
        """Return how many of these ids it has."""
        with _answers():
            found = self._client.zmscore(self._ids, [*ids]) if ids else []
        return sum(score is not None for score in found)

    def vector(self, id: str) -> NDArray[np.float32]:
        """Return the vector of an item, D. Raises NotFound."""
        (found,) = self._read(lambda pipe: pipe.vset().vemb(self._vectors, id, raw=True))
        if found is None:
            raise no_item(id, self.name)
        return _vector(found)

    def search(self, query: Query) -> list[Hit]:
        """Return the nearest items by cosine, best first; with a filter, compare all vectors."""

        def ranked(most: int, truth: bool) -> list[tuple[str, float]]:
            query.check_wanted()
            (scores,) = self._read(
                lambda pipe: pipe.vset().vsim(
                    self._vectors,
                    np.ascontiguousarray(query.vector_D, "<f4").tobytes(),
                    with_scores=True,
                    count=most,
                    ef=most,
                    filter=_expression(query.filter or {}),
                    truth=truth,
                )
            )
            # Redis' own score is (1 + cosine) / 2.
            return [(id, 2 * score - 1) for id, score in cast(dict[str, float], scores).items()]

        walk, compare = partial(ranked, truth=False), partial(ranked, truth=True)
        page = dict(query.page(len(self), query.exclude, walk, compare))
        return [Hit(one.id, page[one.id], one.metadata) for one in self._listed([*page])]

    def items(self, after: str, limit: int) -> list[Listed]:
        """Return items in the UTF-8 byte order of their ids, starting after ``after``."""
        while True:
            start = f"({after}" if after else "-"
            with _answers():
                found = self._client.zrange(self._ids, start, "+", bylex=True, offset=0, num=limit)
            ids = cast(list[str], found)
            listed = self._listed(ids)
            if listed or not ids:  # otherwise all were just deleted, and others may follow
                return listed
            after = ids[-1]

    def stored(self) -> Iterator[Item]:
        """Yield all items with their vectors, in the UTF-8 byte order of their ids.

        Raises InvalidRequest if the collection is made again with another model meanwhile.
        """
        listed = self.items("", PAGE)
        while listed:
            ids = [item.id for item in listed]

            def read(pipe: Pipeline, ids: list[str] = ids) -> None:
                for id in ids:
                    pipe.vset().vemb(self._vectors, id, raw=True)

            for item, found in zip(listed, self._read(read), strict=True):
                if found:  # it may have been deleted since it was listed
                    yield Item(item.id, _vector(found), item.metadata)
            listed = self.items(ids[-1], PAGE)

    def _read(self, queue: Callable[[Pipeline], object]) -> list[Any]:
        """Return the answers to the queued commands, if the collection still has this model.

        Raises InvalidRequest if another service has made it again with another one. A transaction
        would decode the bytes of vectors, so the model is read last instead.
        """
        with _answers(), self._client.pipeline(transaction=False) as pipe:
            queue(pipe)
            pipe.hmget(self._model, "digest", "dtype")
            *answers, (digest, dtype) = pipe.execute()
        if digest is not None:  # else it is deleted, or has no items yet
            self._check(digest, dtype or UNRECORDED)
        return answers

    def _check(self, digest: str, dtype: str) -> None:
        name = self.name.rpartition(OF)[2]
        check_model(name, digest, self.digest)
        check_dtype(name, dtype, self.dtype)

    def _listed(self, ids: Sequence[str]) -> list[Listed]:
        """Return the items of these ids, without those that were just deleted."""
        with _answers(), self._client.pipeline(transaction=False) as pipe:
            for id in ids:
                pipe.vset().vgetattr(self._vectors, id)
            attributes = pipe.execute()
        return [
            Listed(id, found["metadata"])
            for id, found in zip(ids, attributes, strict=True)
            if found
        ]


class VectorSets(Collections):
    """All collections in a Redis. Not thread-safe, but other processes may share them."""

    def __init__(self, client: redis.Redis, digest: str, dimension: int):
        super().__init__(digest, dimension)
        self._client = client

    def close(self) -> None:
        self._client.close()

    def _names(self) -> list[str]:
        with _answers():
            return sorted(cast(set[str], self._client.smembers(NAMES)))

    def _find(self, name: str) -> VectorSet | None:
        with _answers():
            model = cast(dict[str, str], self._client.hgetall(_key(name, "model")))
        if not model:
            return None
        dtype = model.get("dtype", UNRECORDED)
        return VectorSet(self._client, name, model["digest"], int(model["dimension"]), dtype)

    def _make(self, name: str, dtype: str) -> VectorSet:
        """Return a collection, which its first item will create: Redis stores no empty keys."""
        return VectorSet(self._client, name, self._digest, self._dimension, dtype)

    def _remove(self, name: str) -> None:
        # A transaction: between two steps, another process could re-create the collection and lose
        # its name. Collections are on one server, so the keys need no common slot.
        with _answers(), self._client.pipeline(transaction=True) as pipe:
            pipe.unlink(*(_key(name, kind) for kind in ("model", "vectors", "ids")))
            pipe.srem(NAMES, name)
            pipe.execute()


def _key(name: str, kind: str) -> str:
    return f"{NAMES}:{{{name}}}:{kind}"


def _vector(found: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return the vector of Redis' raw answer, which has it with length 1, and its length."""
    return np.frombuffer(found["raw"], "<f4") * np.float32(found["l2"])


def _attributes(item: Item) -> str:
    metadata = dict(item.metadata)
    return json.dumps({"metadata": metadata, "pairs": [_pair(*pair) for pair in metadata.items()]})


def _expression(filter: Mapping[str, str]) -> str:
    """Return an expression for VSIM FILTER; it has hashes of the pairs, not the caller's text."""
    return " and ".join(f'"{_pair(*pair)}" in .pairs' for pair in filter.items())


def _pair(key: str, value: str) -> str:
    return hashlib.sha256(json.dumps([key, value]).encode()).hexdigest()[:32]
