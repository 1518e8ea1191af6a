"""The first tier of the embedding cache: in this process, bounded by bytes, oldest use out first.

An entry's name is the content and the contract: sha256 of the encoded file, digest of the weights,
version of the preprocessing, resolution, dtype and layout. The three outputs of the encoder are
entries of their own with their own room, so that large maps never push out the small vectors.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from samclip.v1 import samclip_pb2 as pb

from samclip_core.geometry import PREPROCESS_VERSION, Geometry
from services import metrics

LAYOUT = "f16-1"
"""How entries are stored: float16, version 1. Raise it when an old entry would be misread."""

SHARES = {pb.SAM: 0.6, pb.CLIP_DENSE: 0.35, pb.CLIP_POOLED: 0.05}
"""Of the cache's bytes; a pooled vector is about a thousandth of a map."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Entry:
    """One output of the encoder for one image, and the image's geometry."""

    array: NDArray[np.float16]
    geometry: Geometry


def namespace(digest: str, image_size: int, dtype: str) -> str:
    """What, besides the image, decides the numbers of an entry."""
    return f"{digest}:{PREPROCESS_VERSION}:{image_size}:{dtype}:{LAYOUT}"


class _Shelf:
    """The entries of one output."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.size = 0
        self.entries: OrderedDict[str, Entry] = OrderedDict()

    def get(self, key: str) -> Entry | None:
        entry = self.entries.get(key)
        if entry is not None:
            self.entries.move_to_end(key)
        return entry

    def put(self, key: str, entry: Entry) -> None:
        if entry.array.nbytes > self.capacity:
            return
        replaced = self.entries.pop(key, None)
        self.size += entry.array.nbytes - (replaced.array.nbytes if replaced else 0)
        self.entries[key] = entry
        while self.size > self.capacity:
            _, oldest = self.entries.popitem(last=False)
            self.size -= oldest.array.nbytes


class Cache:
    """Embeddings by image key and output. For one event loop: not thread-safe."""

    def __init__(self, capacity: int, contract: str):
        self._contract = contract
        self._shelves = {output: _Shelf(int(capacity * part)) for output, part in SHARES.items()}

    @property
    def size(self) -> int:
        """Bytes held."""
        return sum(shelf.size for shelf in self._shelves.values())

    def get(self, image_key: str, outputs: Sequence[pb.Output]) -> dict[pb.Output, Entry] | None:
        """All of these outputs, or None where one of them is missing."""
        found = {}
        with metrics.stage("cache_l1"):
            for output in outputs:
                entry = self._shelves[output].get(self._name(image_key))
                outcome = "miss" if entry is None else "hit"
                metrics.CACHE.labels("l1", pb.Output.Name(output), outcome).inc()
                if entry is not None:
                    found[output] = entry
        return found if len(found) == len(outputs) else None

    def put(self, image_key: str, entries: Mapping[pb.Output, Entry]) -> None:
        for output, entry in entries.items():
            self._shelves[output].put(self._name(image_key), entry)
        metrics.CACHE_BYTES.labels("l1").set(self.size)

    def _name(self, image_key: str) -> str:
        return f"{image_key}:{self._contract}"


@dataclass(eq=False)
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    waiting: int = 0


class SingleFlight(Generic[T]):
    """Callers that want the same thing at the same time share one piece of work.

    A caller that is cancelled leaves; the work is cancelled only when nobody waits for it.
    """

    def __init__(self) -> None:
        self._flights: dict[str, _Flight[T]] = {}

    async def run(self, key: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result (or the error) of ``work``, started here unless it is under way."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.create_task(work()))
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting and self._flights.get(key) is flight:
                del self._flights[key]
                flight.task.cancel()
