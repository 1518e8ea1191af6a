"""The Redis engine: all collections of a server, or of a Redis Cluster."""

import secrets
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import cast

import redis

from services.retrieval.checks import changed_meanwhile, check_dtype, check_model
from services.retrieval.index import OF_CONCEPTS, Collections
from services.retrieval.scripts import KINDS, REGISTER
from services.retrieval.shards import Shards, part_names
from services.retrieval.vector_sets import (
    NAMES,
    Client,
    InRedis,
    VectorSet,
    answers,
    key_of,
    server_of,
)

AT_ONCE = 16
"""Shards that are asked at once."""

Model = tuple[str, str, int, str]
"""Name, digest, dimension and dtype of a collection."""


class VectorSets(Collections):
    """All collections in a Redis. Not thread-safe, but other processes may share them.

    New collections have ``shards``; 0: each is one vector set, which needs a single server.
    """

    def __init__(self, client: Client, digest: str, dimension: int, shards: int = 0):
        super().__init__(digest, dimension)
        self._client, self._shards = client, shards
        self._pool = ThreadPoolExecutor(AT_ONCE, "shards")

    def close(self) -> None:
        self._pool.shutdown()
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
            return self._sharded(model, int(found["shards"]), found["word"])
        server = server_of(self._client, key_of(name, "model"))
        return VectorSet(server, model, None if self._is_cluster else NAMES)

    def _make(self, name: str, dtype: str) -> InRedis:
        """Return a collection, which its first item will create: Redis stores no empty keys."""
        model = name, self._digest, self._dimension, dtype
        if self._shards:
            return self._sharded(model, 1 if OF_CONCEPTS in name else self._shards)
        return VectorSet(cast(redis.Redis, self._client), model)

    @property
    def _is_cluster(self) -> bool:
        return isinstance(self._client, redis.RedisCluster)

    def _sharded(self, model: Model, count: int, word: str = "") -> Shards:
        """Return a collection in so many shards; without ``word``, one that has no items yet."""
        name, _, dimension, dtype = model
        home = key_of(name, "model")

        def register(digest: str) -> tuple[str, list[VectorSet]]:
            new = digest, dimension, dtype, count, secrets.token_hex(4)
            with answers():
                self._client.sadd(NAMES, name)  # first: without it, the items would be lost
                script = server_of(self._client, home).register_script(REGISTER)
                found, found_dtype, shards, word = script((home,), new)
            check_model(name, found, digest)
            check_dtype(name, found_dtype, dtype)
            if word is None:  # another process has just made it, without shards
                raise changed_meanwhile(name)
            return found, self._parts((name, found, dimension, dtype), int(shards), word)

        def is_current(part: str) -> bool:
            with answers():
                word = cast(str | None, self._client.hget(home, "word"))
            return part.startswith(f"{name}/{word}-")

        parts = self._parts(model, count, word) if word else []
        return Shards(parts, model, register, is_current, self._refresh, self._pool)

    def _parts(self, model: Model, count: int, word: str) -> list[VectorSet]:
        name, digest, dimension, dtype = model
        names = part_names(name, word, count)
        servers = [server_of(self._client, key_of(part, "model")) for part in names]
        return [
            VectorSet(server, (part, digest, dimension, dtype), None)
            for server, part in zip(servers, names, strict=True)
        ]

    def _refresh(self) -> None:
        if isinstance(self._client, redis.RedisCluster):
            with suppress(redis.RedisError):
                self._client.nodes_manager.initialize()

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
