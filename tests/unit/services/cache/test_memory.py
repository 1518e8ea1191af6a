import numpy as np
from samclip.v1 import samclip_pb2 as pb

from samclip_core.geometry import Geometry
from services.cache.entry import Entry
from services.cache.memory import SHARES, MemoryTier
from services.observability import metrics

ALL = (pb.SAM, pb.CLIP_DENSE, pb.CLIP_POOLED)


def entry(values: int, fill: float = 0.0) -> Entry:
    return Entry(np.full(values, fill, np.float16), Geometry(10, 20, 32))


def entries() -> dict:
    return {pb.SAM: entry(300), pb.CLIP_DENSE: entry(150), pb.CLIP_POOLED: entry(5)}


def count(output: str, outcome: str) -> float:
    return metrics.CACHE.labels("l1", output, outcome)._value.get()


def test_each_output_is_an_entry_of_its_own_and_is_counted():
    memory = MemoryTier(1 << 20)
    memory.put("k", {pb.CLIP_POOLED: entry(5, 1.0)})
    hits, misses = count("CLIP_POOLED", "hit"), count("SAM", "miss")
    found = memory.get("k", ALL)
    assert list(found) == [pb.CLIP_POOLED]
    assert found[pb.CLIP_POOLED].array[0] == 1.0
    assert (count("CLIP_POOLED", "hit"), count("SAM", "miss")) == (hits + 1, misses + 1)
    assert memory.get("other", (pb.CLIP_POOLED,)) == {}


def test_bytes_are_bounded_and_the_least_recently_used_entry_goes_first():
    memory = MemoryTier(int(2 * 600 / SHARES[pb.SAM]) + 1)  # room for two SAM maps
    memory.put("a", {pb.SAM: entry(300)})
    memory.put("b", {pb.SAM: entry(300)})
    assert memory.get("a", (pb.SAM,))
    memory.put("c", {pb.SAM: entry(300)})
    assert not memory.get("b", (pb.SAM,))
    assert memory.get("a", (pb.SAM,))
    assert memory.get("c", (pb.SAM,))
    assert memory.size == 1200


def test_maps_do_not_evict_vectors_and_nothing_is_kept_of_evicted_entries():
    capacity, made = 100_000, entries()
    memory = MemoryTier(capacity)
    for key in range(500):
        memory.put(str(key), made)
    assert list(memory.get("0", ALL)) == [pb.CLIP_POOLED]
    held = {output: len(shelf) for output, shelf in memory._shelves.items()}
    room = {output: int(capacity * SHARES[output]) // made[output].array.nbytes for output in ALL}
    assert held == room | {pb.CLIP_POOLED: 500, pb.REGIONS: 0}


def test_without_masks_the_others_have_all_the_room():
    made = {output: value for output, value in entries().items() if output != pb.SAM}
    memory = MemoryTier(40_000, masks=False)
    for key in range(500):
        memory.put(str(key), made)
    assert len(memory._shelves[pb.CLIP_DENSE]) == 34_285 // 300
    assert 0.9 * memory.capacity < memory.size <= memory.capacity


def test_a_replaced_entry_counts_once_and_a_too_large_one_is_not_kept():
    memory = MemoryTier(5000)
    memory.put("k", {pb.SAM: entry(300)})
    memory.put("k", {pb.SAM: entry(200)})
    assert memory.size == 400
    memory.put("huge", {pb.SAM: entry(100_000)})
    assert not memory.get("huge", (pb.SAM,))
    assert memory.size == 400
