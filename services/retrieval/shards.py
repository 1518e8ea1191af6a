"""A collection in several shards, each a vector set with keys in a hash slot of its own.

The hash samclip:index:{NAME}:model also has the number of shards, and a random word that is new
whenever the collection is made anew. Its shards NAME/WORD-NUMBER have the keys of
``services.retrieval.vector_sets``. Their numbers are chosen so that each shard has its own equal
share of the hash slots, which a Redis Cluster spreads over its servers. An id's checksum chooses
its shard.
"""

import heapq
import itertools
import zlib
from collections import ChainMap, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Executor
from functools import lru_cache
from itertools import chain, islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import Unavailable
from services.retrieval import objects
from services.retrieval.checks import changed_meanwhile, no_item
from services.retrieval.index import Item
from services.retrieval.query import Query
from services.retrieval.vector_sets import InRedis, VectorSet, attributes, key_of

T = TypeVar("T")


class Shards(InRedis):
    """A collection whose items are in several vector sets."""

    def __init__(
        self,
        parts: Sequence[VectorSet],
        model: tuple[str, str, int, str],
        register: Callable[[str], tuple[str, Sequence[VectorSet]]],
        is_current: Callable[[str], bool],
        refresh: Callable[[], None],
        pool: Executor,
    ):
        """``parts`` are empty in a new collection. ``register`` records the digest of vectors that
        are added, and returns the one that holds, and the parts. ``is_current`` says whether the
        collection still has a part of this name. ``refresh`` finds the servers of
        the parts anew.
        """
        self.name, self.digest, self.dimension, self.dtype = model
        self._parts, self._pool = parts, pool
        self._register, self._is_current, self._refresh = register, is_current, refresh

    def __len__(self) -> int:
        return sum(self._all(len))

    def upsert(self, items: Sequence[Item], digest: str = "") -> int:
        if not items:
            return 0
        for item in items:
            attributes(item)  # raises before graphs are recorded whose vectors are not stored
        self.digest, self._parts = self._register(max(self.digest, digest, key=len))
        latest = {item.id: item for item in items}
        replaced = self._each(
            lambda part, ids: part.upsert([latest[id] for id in ids], self.digest),
            self._grouped(latest),
        )
        if not self._is_current(self._parts[0].name):
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

    def vector(self, id: str) -> NDArray[np.float32]:
        for found in self._each(lambda part, _: part.vector(id), self._grouped([id])):
            return found
        raise no_item(id, self.name)

    def nearest(self, query: Query, most: int, exact: bool) -> list[tuple[str, float]]:
        found = self._all(lambda part: part.nearest(query, most, exact))
        return heapq.nlargest(most, chain(*found), key=lambda hit: hit[1])

    def items(self, after: str, limit: int) -> list[pb.ListedItem]:
        found = self._all(lambda part: part.items(after, limit))
        return [*islice(heapq.merge(*found, key=_in_bytes), limit)]

    def stored_of(self, ids: Sequence[str]) -> list[Item]:
        return [*chain(*self._each(lambda part, ids: part.stored_of(ids), self._grouped(ids)))]

    def stored(self) -> Iterator[Item]:
        yield from heapq.merge(*(part.stored() for part in self._parts), key=_in_bytes)

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
        asked = [self._pool.submit(ask, self._parts[n], ids) for n, ids in groups.items()]
        errors = [future.exception() for future in asked]
        if any(isinstance(error, Unavailable) for error in errors):
            self._refresh()
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


def _in_bytes(item: Item | pb.ListedItem) -> bytes:
    return item.id.encode()
