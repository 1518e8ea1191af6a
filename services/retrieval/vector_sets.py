"""The Redis engine: each collection is a vector set with some auxiliary keys.

A collection NAME has these keys, which never expire:

    samclip:index:{NAME}:model      hash: the model's digest, the vectors' dimension and dtype, and
                                    the number of objects
    samclip:index:{NAME}:vectors    vector set: id → unquantised float32 vector, and attributes
    samclip:index:{NAME}:ids        sorted set of all ids, for listing
    samclip:index:{NAME}:counts     hash: id → number of objects, if the item has some
    samclip:index:{NAME}:objects    hash: id → the objects, packed

``samclip:index`` is the set of all names. Redis has applied a change before it is acknowledged, and
applies each item atomically; durability across restarts depends on Redis' persistence settings.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, cast

import numpy as np
import redis
from numpy.typing import NDArray
from redis.client import NEVER_DECODE, Pipeline
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.steps import Steps
from samclip_core.errors import Unavailable
from services.retrieval import object_search, objects
from services.retrieval.checks import check_dtype, check_model, own
from services.retrieval.index import Collection, Collections, Item, to_bytes, to_vector
from services.retrieval.query import Query
from services.retrieval.redis_client import DELETE, KINDS, NAMES, UPSERT, answers, key_of


class VectorSets(Collections):
    """All collections in a Redis. Not thread-safe, but other processes may share them."""

    def __init__(self, client: redis.Redis, digest: str, dimension: int):
        super().__init__(digest, dimension)
        self._client = client

    def close(self) -> None:
        self._client.close()

    def _all_names(self) -> list[str]:
        with answers():
            return sorted(cast(set[str], self._client.smembers(NAMES)))

    def _find(self, name: str) -> "VectorSet | None":
        with answers():
            found = cast(dict[str, str], self._client.hgetall(key_of(name, "model")))
        if not found:
            return None
        model = name, found["digest"], int(found["dimension"]), found.get("dtype", "")
        return VectorSet(self._client, model)

    def _make(self, name: str, dtype: str) -> "VectorSet":
        """Return a collection, which its first item will create: Redis stores no empty keys."""
        return VectorSet(self._client, (name, self._digest, self._dimension, dtype))

    def _remove(self, name: str) -> None:
        # Otherwise another process could re-create the collection, and then lose its name.
        with answers(), self._client.pipeline(transaction=True) as pipe:
            pipe.srem(NAMES, name)
            pipe.unlink(*(key_of(name, kind) for kind in KINDS))
            pipe.execute()


class VectorSet(Collection):
    """A collection in a vector set."""

    def __init__(self, client: redis.Redis, model: tuple[str, str, int, str]):
        self.name, self.digest, self.dimension, self.dtype = model
        self._client = client
        name = self.name
        self._keys = tuple(key_of(name, kind) for kind in KINDS)
        self._model, self._vectors, self._ids, self._counts, self._packed = self._keys
        self._put = client.register_script(UPSERT)
        self._drop = client.register_script(DELETE)

    def __len__(self) -> int:
        with answers():
            return self._client.vset().vcard(self._vectors)

    def upsert(self, items: Sequence[Item], digest: str = "") -> int:
        """Add each item atomically; see ``Collection.upsert``.

        Raises InvalidRequest if the collection was re-created with another model or precision.
        """
        self.digest = max(self.digest, digest, key=len)
        model = self.name, self.digest, self.dimension, self.dtype
        with answers(), self._client.pipeline(transaction=False) as pipe:
            for item in items:
                of_item = item.id, to_bytes(item.vector_D), attributes(item)
                held = objects.count(item.objects), item.objects
                self._put((*self._keys, NAMES), (*model, *of_item, *held), client=pipe)
            done = pipe.execute()
        for found, dtype, _ in done:
            self._check(found, dtype)
            if found != self.digest:  # nothing was added
                raise Unavailable(
                    f"collection {own(self.name)!r} was made anew meanwhile: try again"
                )
        return sum(not added for *_, added in done)

    def delete(self, ids: Sequence[str]) -> int:
        with answers(), self._client.pipeline(transaction=False) as pipe:
            for id in ids:
                self._drop(self._keys, (id,), client=pipe)
            return sum(pipe.execute())

    def count_objects(self, ids: Set[str] | None = None) -> int:
        with answers():
            if ids is None:
                found = [self._client.hget(self._model, "objects")]
            else:
                found = self._client.hmget(self._counts, [*ids]) if ids else []
        return sum(int(count or 0) for count in found)

    def holds(self, ids: Set[str]) -> int:
        with answers():
            found = self._client.zmscore(self._ids, [*ids]) if ids else []
        return sum(score is not None for score in found)

    def _nearest(self, query: Query) -> Steps[list[pb.Hit]]:
        ranking = dict[str, float]()
        if walked := query.walked(len(self)):
            ranking = dict(self._similar(query, walked, exact=False))
            yield None
        if len(ranking) < query.depth:
            others = yield from self._compare(query)
            ranking |= ((id, score) for id, score in others if id not in ranking)
        page = dict(query.page(ranking, query.exclude))
        return [
            pb.Hit(id=item.id, score=page[item.id], metadata=item.metadata)
            for item in self.listed([*page])
        ]

    def _compare(self, query: Query) -> Steps[list[tuple[str, float]]]:
        """Return ids and cosines of the nearest items, in the same order for every page.

        Redis returns any of several tied items, so all ties with the last one are fetched.
        """
        count, asked = query.depth, query.depth + 1
        while True:
            hits = sorted(
                self._similar(query, asked, exact=True), key=lambda hit: (-hit[1], hit[0])
            )
            if len(hits) < asked or hits[-1][1] < hits[count - 1][1]:
                return hits[:count]
            asked *= 2
            yield None

    def _similar(self, query: Query, most: int, exact: bool) -> list[tuple[str, float]]:
        """Return the ids and cosines of the nearest ``most`` items of the query's filter.

        ``exact``: by comparing all vectors, and not by a search of the graph.
        """
        (scores,) = self._read(
            lambda pipe: pipe.vset().vsim(
                self._vectors,
                to_bytes(query.vector_D),
                with_scores=True,
                count=most,
                ef=most,
                # Hashes of the pairs, and not the caller's text.
                filter=" and ".join(
                    f'"{_pair(*p)}" in .pairs' for p in (query.filter or {}).items()
                ),
                truth=exact,
            )
        )
        # Redis' own score is (1 + cosine) / 2.
        return [(id, 2 * score - 1) for id, score in cast(dict[str, float], scores).items()]

    def items(self, after: str, limit: int) -> list[pb.ListedItem]:
        while True:
            start = f"({after}" if after else "-"
            with answers():
                found = self._client.zrange(self._ids, start, "+", bylex=True, offset=0, num=limit)
            ids = cast(list[str], found)
            listed = self.listed(ids)
            if listed or not ids:  # otherwise all were just deleted, and others may follow
                return listed
            after = ids[-1]

    def stored_of(self, ids: Sequence[str]) -> list[Item]:
        listed = self.listed(ids)
        vectors = self.vectors_of([item.id for item in listed])
        packed = self._packed_of([item.id for item in listed])
        return [
            Item(item.id, vectors[item.id], item.metadata, packed.get(item.id, b""))
            for item in listed
            if item.id in vectors  # it may have been deleted since it was listed
        ]

    def _objects(self, filter: Mapping[str, str]) -> Iterator[object_search.Page]:
        with answers():
            ids = sorted(cast(list[str], self._client.hkeys(self._counts)))
        for start in range(0, len(ids), object_search.PAGE):
            page = ids[start : start + object_search.PAGE]
            if filter:
                listed = self.listed(page)
                # A map of protobuf has "" for every key, so a copy is compared.
                pairs = {item.id: dict(item.metadata).items() for item in listed}
                page = [id for id, has in pairs.items() if filter.items() <= has]
            yield [*self._packed_of(page).items()]

    def _packed_of(self, ids: Sequence[str]) -> dict[str, bytes]:
        if not ids:
            return {}
        command = "HMGET", self._packed, *ids
        (found,) = self._read(lambda pipe: pipe.execute_command(*command, **{NEVER_DECODE: []}))
        return {id: packed for id, packed in zip(ids, found, strict=True) if packed}

    def vectors_of(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        found = self._read(
            lambda pipe: [pipe.vset().vemb(self._vectors, id, raw=True) for id in ids]
        )
        # Redis has vectors of length 1, and their lengths.
        return {
            id: to_vector(stored["raw"]) * np.float32(stored["l2"])
            for id, stored in zip(ids, found, strict=True)
            if stored
        }

    def _read(self, queue: Callable[[Pipeline], object]) -> list[Any]:
        """Return the answers to the queued commands, if the collection still has this model.

        Raises InvalidRequest if another service has made it again with another one. A transaction
        would decode the bytes of vectors, so the model is read last instead.
        """
        with answers(), self._client.pipeline(transaction=False) as pipe:
            queue(pipe)
            pipe.hmget(self._model, "digest", "dtype")
            *found, (digest, dtype) = pipe.execute()
        if digest is not None:  # else it is deleted, or has no items yet
            self._check(digest, dtype)
        return found

    def _check(self, digest: str, dtype: str | None) -> None:
        check_model(self.name, digest, self.digest)
        check_dtype(self.name, dtype or "", self.dtype)

    def listed(self, ids: Sequence[str]) -> list[pb.ListedItem]:
        """See ``Collection.listed``; items may just have been deleted."""
        if not ids:
            return []
        with answers(), self._client.pipeline(transaction=False) as pipe:
            for id in ids:
                pipe.vset().vgetattr(self._vectors, id)
            pipe.hmget(self._counts, [*ids])
            *found_attributes, counts = pipe.execute()
        return [
            pb.ListedItem(id=id, metadata=found["metadata"], objects=int(count or 0))
            for id, found, count in zip(ids, found_attributes, counts, strict=True)
            if found
        ]


def attributes(item: Item) -> str:
    metadata = dict(item.metadata)
    return json.dumps({"metadata": metadata, "pairs": [_pair(*pair) for pair in metadata.items()]})


def _pair(key: str, value: str) -> str:
    return hashlib.sha256(json.dumps([key, value]).encode()).hexdigest()[:32]
