import numpy as np
import pytest
from samclip.v1 import samclip_pb2 as pb

from samclip_core.geometry import Geometry
from services.cache.entry import Entry
from services.cache.memory import SHARES, MemoryTier
from services.observability import metrics
from tests.shown import shown

ALL = (pb.SAM, pb.CLIP_DENSE, pb.CLIP_POOLED)


def entry(values: int, fill: float = 0.0) -> Entry:
    return Entry(np.full(values, fill, np.float16), Geometry(10, 20, 32))


def entries() -> dict:
    return {pb.SAM: entry(300), pb.CLIP_DENSE: entry(150), pb.CLIP_POOLED: entry(5)}


def count(output: str, outcome: str) -> float:
    return shown(metrics.CACHE.labels("l1", output, outcome))


def key(name: object) -> tuple[str, str]:
    return "contract", str(name)


def test_each_output_is_an_entry_of_its_own_and_is_counted():
    memory = MemoryTier(1 << 20)
    memory.put(key("k"), {pb.CLIP_POOLED: entry(5, 1.0)})
    hits, misses = count("CLIP_POOLED", "hit"), count("SAM", "miss")
    found = memory.get(key("k"), ALL)
    assert list(found) == [pb.CLIP_POOLED]
    assert found[pb.CLIP_POOLED].array[0] == 1.0
    assert (count("CLIP_POOLED", "hit"), count("SAM", "miss")) == (hits + 1, misses + 1)
    for other in (key("other"), ("another contract", "k")):
        assert memory.get(other, (pb.CLIP_POOLED,)) == {}


def test_bytes_are_bounded_and_the_least_recently_used_entry_goes_first():
    memory = MemoryTier(1300)  # room for two SAM maps
    memory.put(key("a"), {pb.SAM: entry(300)})
    memory.put(key("b"), {pb.SAM: entry(300)})
    assert memory.get(key("a"), (pb.SAM,))
    memory.put(key("c"), {pb.SAM: entry(300)})
    assert not memory.get(key("b"), (pb.SAM,))
    assert memory.get(key("a"), (pb.SAM,))
    assert memory.get(key("c"), (pb.SAM,))
    assert memory.size == 1200


def test_a_full_cache_has_both_maps_of_a_picture_whose_masks_need_both():
    memory, both = MemoryTier(100_000), {pb.SAM: entry(300), pb.SAM_FINE: entry(900)}
    for name in range(100):
        memory.put(key(name), both)
    whole = [len(memory.get(key(name), (*both,))) for name in range(100)]
    assert whole.count(2) >= 40  # of 41 that fit
    assert whole.count(1) <= 1


def test_maps_do_not_evict_vectors_and_nothing_is_kept_of_evicted_entries():
    capacity, made = 100_000, entries()
    memory = MemoryTier(capacity)
    for name in range(500):
        memory.put(key(name), made)
    assert list(memory.get(key(0), ALL)) == [pb.CLIP_POOLED]
    sizes = {output: shelf.currsize for output, shelf in memory._shelves.items()}
    assert sizes[pb.CLIP_POOLED] == 500 * 10
    assert memory.size <= capacity < memory.size + made[pb.SAM].array.nbytes
    # The maps have their shares, and that of the regions, which nobody has stored.
    assert sizes[pb.SAM] / SHARES[pb.SAM] == pytest.approx(
        sizes[pb.CLIP_DENSE] / SHARES[pb.CLIP_DENSE], rel=0.05
    )


def test_what_an_output_leaves_free_others_may_use():
    memory = MemoryTier(40_000)
    for name in range(500):
        memory.put(key(name), {pb.CLIP_DENSE: entry(150)})
    assert len(memory._shelves[pb.CLIP_DENSE]) == 40_000 // 300
    for name in range(500):
        memory.put(key(name), entries())
    assert memory._shelves[pb.SAM].currsize > 0.4 * memory.capacity


def test_a_replaced_entry_counts_once_and_a_too_large_one_is_not_kept():
    memory = MemoryTier(5000)
    memory.put(key("k"), {pb.SAM: entry(300)})
    memory.put(key("k"), {pb.SAM: entry(200)})
    assert memory.size == 400
    memory.put(key("huge"), {pb.SAM: entry(100_000)})
    assert not memory.get(key("huge"), (pb.SAM,))
    assert memory.size == 400
