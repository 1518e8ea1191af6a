import numpy as np
import pytest

from samclip_core.errors import NotFound
from services.retrieval import collection
from services.retrieval.collection import Collection, Item

D = 8


def vector(seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=D).astype(np.float32)
    return values / np.linalg.norm(values)


def items(*seeds: int) -> list[Item]:
    return [Item(f"id {seed}", vector(seed), {"seed": str(seed)}) for seed in seeds]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pets"


def reopen(path) -> Collection:
    return Collection(path, "other", 3)  # what is stored counts, not what is asked for


def test_the_nearest_comes_first_with_cosine_and_metadata(path):
    found = Collection(path, "m", D)
    found.upsert(items(*range(20)))
    hits = found.search(vector(7), 3)
    assert (hits[0].id, hits[0].metadata) == ("id 7", {"seed": "7"})
    assert hits[0].score == pytest.approx(1, abs=1e-5)
    cosines = sorted((float(vector(7) @ vector(seed)) for seed in range(20)), reverse=True)
    assert [hit.score for hit in hits] == pytest.approx(cosines[:3], abs=1e-5)


def test_fewer_items_than_asked_for_and_none_at_all(path):
    found = Collection(path, "m", D)
    assert found.search(vector(0), 5) == []
    found.upsert(items(1, 2))
    assert len(found.search(vector(0), 5)) == 2


def test_an_excluded_item_does_not_take_a_place(path):
    found = Collection(path, "m", D)
    found.upsert(items(*range(5)))
    hits = found.search(vector(3), 2, exclude="id 3")
    assert len(hits) == 2
    assert "id 3" not in [hit.id for hit in hits]


def test_a_second_item_of_an_id_takes_the_place_of_the_first(path):
    found = Collection(path, "m", D)
    found.upsert(items(1, 2))
    found.upsert([Item("id 1", vector(9), {"new": "yes"})])
    assert len(found) == 2
    assert found.search(vector(9), 1)[0].metadata == {"new": "yes"}
    np.testing.assert_array_equal(found.vector("id 1"), vector(9))


def test_the_last_of_several_items_of_an_id_counts(path):
    found = Collection(path, "m", D)
    found.upsert([Item("a", vector(1), {}), Item("a", vector(2), {})])
    assert len(found) == 1
    np.testing.assert_array_equal(found.vector("a"), vector(2))


def test_deleted_items_are_gone_and_unknown_ones_do_not_count(path):
    found = Collection(path, "m", D)
    found.upsert(items(1, 2, 3))
    assert found.delete(["id 1", "id 1", "nobody"]) == 1
    assert len(found) == 2
    assert "id 1" not in [hit.id for hit in found.search(vector(1), 9)]
    with pytest.raises(NotFound, match="no item 'id 1' in collection 'pets'"):
        found.vector("id 1")


def check(found: Collection, *seeds: int) -> None:
    assert len(found) == len(seeds)
    for seed in seeds:
        hit = found.search(vector(seed), 1)[0]
        assert (hit.id, hit.metadata) == (f"id {seed}", {"seed": str(seed)})
    assert (found.digest, found.dimension) == ("m", D)


def test_it_is_there_again_after_closing(path):
    found = Collection(path, "m", D)
    found.upsert(items(1, 2, 3))
    found.delete(["id 2"])
    found.close()
    assert path.with_name("pets.usearch").exists()
    check(reopen(path), 1, 3)


def test_it_is_there_again_after_a_kill_without_any_snapshot(path):
    Collection(path, "m", D).upsert(items(1, 2, 3))
    check(reopen(path), 1, 2, 3)


def test_changes_after_the_snapshot_are_there_after_a_kill(path):
    found = Collection(path, "m", D)
    found.upsert(items(1, 2, 3))
    found.save()
    found.delete(["id 1"])
    found.upsert([*items(4), Item("id 2", vector(2), {"seed": "2"})])
    check(reopen(path), 2, 3, 4)


@pytest.mark.parametrize("damage", [b"", b"garbage" * 50, None])
def test_a_damaged_snapshot_is_made_anew(path, damage):
    found = Collection(path, "m", D)
    found.upsert(items(1, 2, 3))
    found.close()
    snapshot = path.with_name("pets.usearch")
    content = bytearray(snapshot.read_bytes())
    content[len(content) // 2] ^= 0xFF
    snapshot.write_bytes(bytes(content) if damage is None else damage)
    check(reopen(path), 1, 2, 3)


def test_snapshots_are_written_after_many_changes(path, monkeypatch):
    monkeypatch.setattr(collection, "SNAPSHOT_EVERY", 3)
    found = Collection(path, "m", D)
    found.upsert(items(1, 2))
    assert not path.with_name("pets.usearch").exists()
    found.upsert(items(3))
    assert path.with_name("pets.usearch").exists()


def test_large_collections_are_searched_by_the_graph(path, monkeypatch):
    monkeypatch.setattr(collection, "EXACT", 10)
    found = Collection(path, "m", D)
    found.upsert(items(*range(200)))
    nearest = [found.search(vector(seed), 1)[0].id for seed in range(200)]
    assert sum(id == f"id {seed}" for seed, id in enumerate(nearest)) >= 195


def test_a_failed_upsert_changes_nothing(path):
    found = Collection(path, "m", D)
    found.upsert(items(1))
    with pytest.raises(TypeError):
        found.upsert([*items(2), Item("bad", vector(3), {"x": object()})])
    check(found, 1)
    check(reopen(path), 1)


def test_removed_files_are_gone(path):
    found = Collection(path, "m", D)
    found.upsert(items(1))
    found.save()
    found.remove_files()
    assert list(path.parent.iterdir()) == []
