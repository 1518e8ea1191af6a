"""The Redis engine: all collections of a server, or of a Redis Cluster.

A collection may be in several shards, each a vector set with keys in a hash slot of its own. Then
the hash samclip:index:{NAME}:model also has the number of shards, and a random word that is new
whenever the collection is made anew. Its shards NAME/WORD-NUMBER have the keys of
``services.retrieval.vector_sets``. Their numbers are chosen so that each shard has its own equal
share of the hash slots, which a Redis Cluster spreads over its servers. An id's checksum chooses
its shard.
"""

import heapq
import itertools
import secrets
import zlib
from collections import ChainMap, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from itertools import chain, islice
from typing import TypeVar, cast

import numpy as np
import redis
from numpy.typing import NDArray
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import Unavailable
from services.retrieval import objects
from services.retrieval.checks import changed_meanwhile, check_dtype, check_model
from services.retrieval.index import OF_CONCEPTS, Collections, Item
from services.retrieval.query import Query
from services.retrieval.redis_client import (
    KINDS,
    NAMES,
    REGISTER,
    Client,
    answers,
    key_of,
    server_of,
)
from services.retrieval.vector_sets import InRedis, VectorSet, attributes

AT_ONCE = 16
"""Shards that are asked at once."""

Model = tuple[str, str, int, str]
"""Name, digest, dimension and dtype of a collection."""
T = TypeVar("T")


class VectorSets(Collections):
    """All collections in a Redis. Not thread-safe, but other processes may share them.

    New collections have ``shards``; 0: each is one vector set, which needs a single server.
    """

    def __init__(self, client: Client, digest: str, dimension: int, shards: int = 0):
        super().__init__(digest, dimension)
        self._client, self._shards = client, shards
        self.pool = ThreadPoolExecutor(AT_ONCE, "shards")

    def close(self) -> None:
        self.pool.shutdown()
        self._client.close()

    def _all_names(self) -> list[str]:
        with answers():
            return sorted(cast(set[str], self._client.smembers(NAMES)))

    def _find(self, name: str) -> InRedis | None:
        with answers():
            found = cast(dict[str, str], self._client.hgetall(key_of(name, "model")))
        if not found:
            return None
        model = name, found["digest"], int(found["dimension"]), found.get("dtype", "")
        if "shards" in found:
            return Shards(self, model, self._parts(model, int(found["shards"]), found["word"]))
        server = server_of(self._client, key_of(name, "model"))
        return VectorSet(server, model, None if self._is_cluster else NAMES)

    def _make(self, name: str, dtype: str) -> InRedis:
        """Return a collection, which its first item will create: Redis stores no empty keys."""
        model = name, self._digest, self._dimension, dtype
        if self._shards:
            return Shards(self, model)
        return VectorSet(cast(redis.Redis, self._client), model)

    @property
    def _is_cluster(self) -> bool:
        return isinstance(self._client, redis.RedisCluster)

    def register(self, model: Model) -> tuple[str, list[VectorSet]]:
        """Record a collection whose vectors are added; return the digest that holds, and its parts.

        Raises InvalidRequest if it has vectors of another model.
        """
        name, digest, dimension, dtype = model
        count = 1 if OF_CONCEPTS in name else self._shards
        new = digest, dimension, dtype, count, secrets.token_hex(4)
        home = key_of(name, "model")
        with answers():
            self._client.sadd(NAMES, name)  # first: without it, the items would be lost
            script = server_of(self._client, home).register_script(REGISTER)
            recorded, recorded_dtype, shards, word = script((home,), new)
        check_model(name, recorded, digest)
        check_dtype(name, recorded_dtype, dtype)
        if word is None:  # another process has just made it, without shards
            raise changed_meanwhile(name)
        return recorded, self._parts((name, recorded, dimension, dtype), int(shards), word)

    def is_current(self, name: str, part: str) -> bool:
        """Return whether the collection still has a part of this name."""
        with answers():
            word = cast(str | None, self._client.hget(key_of(name, "model"), "word"))
        return part.startswith(f"{name}/{word}-")

    def refresh(self) -> None:
        """Find the servers of a Cluster anew."""
        if isinstance(self._client, redis.RedisCluster):
            with suppress(redis.RedisError):
                self._client.nodes_manager.initialize()

    def _parts(self, model: Model, count: int, word: str) -> list[VectorSet]:
        name, digest, dimension, dtype = model
        names = part_names(name, word, count)
        servers = [server_of(self._client, key_of(part, "model")) for part in names]
        return [
            VectorSet(server, (part, digest, dimension, dtype), None)
            for server, part in zip(servers, names, strict=True)
        ]

    def _remove(self, name: str) -> None:
        found = self._find(name)
        keys = [key_of(name, kind) for kind in KINDS]
        if isinstance(found, Shards):
            found.remove_keys()
        # Otherwise another process could re-create the collection, and then lose its name. Two
        # slots have no transaction, and a name without a collection does no harm.
        with answers():
            if self._is_cluster:
                self._client.srem(NAMES, name)
                self._client.unlink(*keys)
            else:
                with self._client.pipeline(transaction=True) as pipe:
                    pipe.srem(NAMES, name)
                    pipe.unlink(*keys)
                    pipe.execute()
        if isinstance(found, Shards):
            found.remove_keys()  # of items that were added before the model was gone


class Shards(InRedis):
    """A collection whose items are in several vector sets."""

    def __init__(self, engine: "VectorSets", model: Model, parts: Sequence[VectorSet] = ()):
        """``parts`` are empty in a collection that has no items yet."""
        self.name, self.digest, self.dimension, self.dtype = model
        self._engine, self._parts = engine, parts

    def __len__(self) -> int:
        return sum(self._all(len))

    def upsert(self, items: Sequence[Item], digest: str = "") -> int:
        if not items:
            return 0
        for item in items:
            attributes(item)  # raises before graphs are recorded whose vectors are not stored
        model = self.name, max(self.digest, digest, key=len), self.dimension, self.dtype
        self.digest, self._parts = self._engine.register(model)
        latest = {item.id: item for item in items}
        replaced = self._each(
            lambda part, ids: part.upsert([latest[id] for id in ids], self.digest),
            self._grouped(latest),
        )
        if not self._engine.is_current(self.name, self._parts[0].name):
            self.remove_keys()
            raise changed_meanwhile(self.name)
        return sum(replaced)

    def delete(self, ids: Sequence[str]) -> int:
        return sum(self._each(lambda part, ids: part.delete(ids), self._grouped(ids)))

    def count_objects(self, ids: Set[str] | None = None) -> int:
        if ids is None:
            return sum(self._all(VectorSet.count_objects))
        groups = self._grouped(ids)
        return sum(self._each(lambda part, ids: part.count_objects({*ids}), groups))

    def holds(self, ids: Set[str]) -> int:
        return sum(self._each(lambda part, ids: part.holds({*ids}), self._grouped(ids)))

    def nearest(self, query: Query, most: int, exact: bool) -> list[tuple[str, float]]:
        found = self._all(lambda part: part.nearest(query, most, exact))
        return heapq.nlargest(most, chain(*found), key=lambda hit: hit[1])

    def items(self, after: str, limit: int) -> list[pb.ListedItem]:
        found = self._all(lambda part: part.items(after, limit))
        return [*islice(heapq.merge(*found, key=_in_bytes), limit)]

    def vectors_of(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        found = self._each(lambda part, ids: part.vectors_of(ids), self._grouped(ids))
        return dict(chain.from_iterable(part.items() for part in found))

    def stored_of(self, ids: Sequence[str]) -> list[Item]:
        return [*chain(*self._each(lambda part, ids: part.stored_of(ids), self._grouped(ids)))]

    def listed(self, ids: Sequence[str]) -> list[pb.ListedItem]:
        found = self._each(lambda part, ids: part.listed(ids), self._grouped(ids))
        by_id = {item.id: item for item in chain(*found)}
        return [by_id[id] for id in ids if id in by_id]

    def remove_keys(self) -> None:
        self._all(VectorSet.remove_keys)

    def _objects(self, filter: Mapping[str, str]) -> Iterator[objects.Page]:
        yield from chain.from_iterable(part._objects(filter) for part in self._parts)

    def _packed_of(self, ids: Sequence[str]) -> dict[str, bytes]:
        packed = self._each(lambda part, ids: part._packed_of(ids), self._grouped(ids))
        return dict(ChainMap(*packed))

    def _grouped(self, ids: Iterable[str]) -> Mapping[int, list[str]]:
        """Return the ids of each part that may have some."""
        groups = defaultdict[int, list[str]](list)
        for id in ids if self._parts else ():
            groups[zlib.crc32(id.encode()) % len(self._parts)].append(id)
        return groups

    def _all(self, ask: Callable[[VectorSet], T]) -> list[T]:
        return self._each(lambda part, _: ask(part), {n: [] for n in range(len(self._parts))})

    def _each(
        self, ask: Callable[[VectorSet, list[str]], T], groups: Mapping[int, list[str]]
    ) -> list[T]:
        """Ask these parts at once. Raises what one of them raises, once all have ended."""
        asked = [self._engine.pool.submit(ask, self._parts[n], ids) for n, ids in groups.items()]
        errors = [future.exception() for future in asked]
        if any(isinstance(error, Unavailable) for error in errors):
            self._engine.refresh()
        for error in filter(None, errors):
            raise error
        return [future.result() for future in asked]


@lru_cache(1024)
def part_names(name: str, word: str, count: int) -> list[str]:
    """Return the names of a collection's shards, by the share of the slots that they lie in.

    The checksum that gives the slot is linear, so successive numbers may all lie close together.
    """
    found, numbers = dict[int, str](), itertools.count()
    while len(found) < count:
        part = f"{name}/{word}-{next(numbers)}"
        slot = key_slot(key_of(part, "model").encode())
        found.setdefault(slot * count // REDIS_CLUSTER_HASH_SLOTS, part)
    return [found[share] for share in range(count)]


def _in_bytes(item: pb.ListedItem) -> bytes:
    return item.id.encode()
