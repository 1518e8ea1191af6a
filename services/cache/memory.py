"""The first tier of the embedding cache: an LRU cache in this process, limited in bytes.

Each output has its own share, so that large maps never evict the small vectors. All operations
take constant time.
"""

from collections.abc import Sequence

from cachetools import LRUCache
from samclip.v1 import samclip_pb2 as pb

from services.cache.entry import Entries, Entry
from services.observability import metrics

SHARES = {pb.SAM: 0.5, pb.CLIP_DENSE: 0.3, pb.REGIONS: 0.15, pb.CLIP_POOLED: 0.05}
"""Shares of the capacity; a pooled vector has about a thousandth of the bytes of a map."""


class MemoryTier:
    """Embeddings of one contract by image key and output. Not thread-safe.

    Without ``masks``, the outputs of CLIP have the shares of SAM and the regions too.
    """

    def __init__(self, capacity: int, masks: bool = True):
        self.capacity = capacity
        whole = 1.0 if masks else 1 - SHARES[pb.SAM] - SHARES[pb.REGIONS]
        self._shelves: dict[pb.Output, LRUCache[str, Entry]] = {
            output: LRUCache(int(capacity * part / whole), getsizeof=_bytes)
            for output, part in SHARES.items()
        }

    @property
    def size(self) -> int:
        """The bytes of all entries."""
        return int(sum(shelf.currsize for shelf in self._shelves.values()))

    def get(self, image_key: str, outputs: Sequence[pb.Output]) -> dict[pb.Output, Entry]:
        """Return those of ``outputs`` that are in memory."""
        found = {}
        for output in outputs:
            entry = self._shelves[output].get(image_key)
            outcome = "miss" if entry is None else "hit"
            metrics.CACHE.labels("l1", pb.Output.Name(output), outcome).inc()
            if entry is not None:
                found[output] = entry
        return found

    def put(self, image_key: str, entries: Entries) -> None:
        for output, entry in entries.items():
            shelf = self._shelves[output]
            if _bytes(entry) <= shelf.maxsize:
                shelf[image_key] = entry
        metrics.CACHE_BYTES.labels("l1").set(self.size)


def _bytes(entry: Entry) -> int:
    return entry.array.nbytes
