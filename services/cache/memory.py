"""The first tier of the embedding cache: an LRU cache in this process, limited in bytes.

Each of the encoder's three outputs has its own share, so that large maps never evict the small
vectors. All operations take constant time.
"""

from collections import OrderedDict
from collections.abc import Sequence

from samclip.v1 import samclip_pb2 as pb

from services.cache.entry import Entries, Entry
from services.observability import metrics

SHARES = {pb.SAM: 0.6, pb.CLIP_DENSE: 0.35, pb.CLIP_POOLED: 0.05}
"""Shares of the capacity; a pooled vector has about a thousandth of the bytes of a map."""


class _Shelf:
    """An LRU cache of one output."""

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


class MemoryTier:
    """Embeddings of one contract by image key and output. Not thread-safe."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self._shelves = {output: _Shelf(int(capacity * part)) for output, part in SHARES.items()}

    @property
    def size(self) -> int:
        """The bytes of all entries."""
        return sum(shelf.size for shelf in self._shelves.values())

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
            self._shelves[output].put(image_key, entry)
        metrics.CACHE_BYTES.labels("l1").set(self.size)
