"""The first tier of the embedding cache: an LRU cache in this process, limited in bytes.

All models of a process share it. Each output has its own share, so that large maps never evict the
small vectors; what one output leaves free, others may use. All operations take constant time.
"""

from collections.abc import Sequence

from cachetools import LRUCache
from samclip.v1 import samclip_pb2 as pb

from services.cache.entry import Entries, Entry
from services.observability import metrics

SHARES = {pb.SAM: 0.5, pb.SAM_FINE: 1.5, pb.CLIP_DENSE: 0.3, pb.REGIONS: 0.15, pb.CLIP_POOLED: 0.05}
"""Shares of the capacity; a pooled vector has about a thousandth of the bytes of a map. SAM_FINE,
which few models have, has three times the bytes of SAM beside it: as many pictures fit in each."""


class MemoryTier:
    """Embeddings by contract with image key, and output. Not thread-safe."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self._shelves: dict[pb.Output, LRUCache[tuple[str, str], Entry]] = {
            output: LRUCache(capacity, getsizeof=_bytes) for output in SHARES
        }

    @property
    def size(self) -> int:
        return int(sum(shelf.currsize for shelf in self._shelves.values()))

    def get(self, key: tuple[str, str], outputs: Sequence[pb.Output]) -> dict[pb.Output, Entry]:
        """Return those of ``outputs`` that are in memory."""
        found = {}
        for output in outputs:
            entry = self._shelves[output].get(key)
            outcome = "miss" if entry is None else "hit"
            metrics.CACHE.labels("l1", pb.Output.Name(output), outcome).inc()
            if entry is not None:
                found[output] = entry
        return found

    def put(self, key: tuple[str, str], entries: Entries) -> None:
        """Store entries; the output that exceeds its share most gives up its oldest ones."""
        for output, entry in entries.items():
            if _bytes(entry) <= self.capacity * min(1, SHARES[output]):
                self._shelves[output][key] = entry
        while self.size > self.capacity:
            fullest = max(
                SHARES, key=lambda output: self._shelves[output].currsize / SHARES[output]
            )
            self._shelves[fullest].popitem()
        metrics.CACHE_BYTES.labels("l1").set(self.size)


def _bytes(entry: Entry) -> int:
    return entry.array.nbytes
