import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from samclip_core.errors import Unavailable
from services.retrieval import collection, objects
from services.retrieval.collection import EmbeddedCollection
from services.retrieval.index import Item
from services.retrieval.query import Query
from tests.vectors import D, items, vector, with_objects


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pets"


NEW = "m", D, "float32"


def check(found: EmbeddedCollection, *seeds: int) -> None:
    assert len(found) == len(seeds)
    for seed in seeds:
        hit = found.search(Query(vector(seed), 1))[0]
        assert (hit.id, hit.metadata) == (f"id {seed}", {"seed": str(seed)})
    assert (found.digest, found.dimension, found.dtype) == NEW


@pytest.mark.parametrize("end", ["close", "kill", "kill after a snapshot"])
def test_it_is_there_again_after_its_process_has_ended(path, end):
    found = EmbeddedCollection(path, NEW)
    found.upsert(items(1, 2, 3))
    if end == "kill after a snapshot":
        found.save()
    found.delete(["id 1"])
    found.upsert([*items(4), Item("id 2", vector(2), {"seed": "2"})])
    if end == "close":
        found.close()
    assert path.with_name("pets.usearch").exists() is (end != "kill")
    check(EmbeddedCollection(path), 2, 3, 4)


@pytest.mark.parametrize("damage", [b"", b"garbage" * 50, None])
def test_a_damaged_snapshot_is_made_anew(path, damage):
    found = EmbeddedCollection(path, NEW)
    found.upsert(items(1, 2, 3))
    found.close()
    snapshot = path.with_name("pets.usearch")
    content = bytearray(snapshot.read_bytes())
    content[len(content) // 2] ^= 0xFF
    snapshot.write_bytes(bytes(content) if damage is None else damage)
    check(EmbeddedCollection(path), 1, 2, 3)


def test_snapshots_are_written_after_many_changes(path, monkeypatch):
    monkeypatch.setattr(collection, "SNAPSHOT_EVERY", 3)
    found = EmbeddedCollection(path, NEW)
    found.upsert(items(1, 2))
    assert not path.with_name("pets.usearch").exists()
    found.upsert(items(3))
    assert path.with_name("pets.usearch").exists()


def test_a_failed_upsert_changes_nothing(path):
    found = EmbeddedCollection(path, NEW)
    found.upsert(items(1))
    with pytest.raises(TypeError):
        found.upsert([*items(2), Item("bad", vector(3), {"x": object()})])
    check(found, 1)
    check(EmbeddedCollection(path), 1)


def test_an_item_is_replaced_together_with_its_objects_or_not_at_all(path, monkeypatch):
    found = EmbeddedCollection(path, NEW)
    found.upsert([with_objects(1)])

    def killed(packed: bytes) -> int:
        raise KeyboardInterrupt

    new = with_objects(2, "id 1")
    monkeypatch.setattr(objects, "count", killed)
    with pytest.raises(KeyboardInterrupt):
        found.upsert([new])
    for each in (found, EmbeddedCollection(path)):
        (item,) = each.stored()
        assert (item.metadata, item.objects) == ({"seed": "1"}, with_objects(1).objects)


def test_a_file_of_an_older_version_takes_objects_and_loses_them_with_their_item(path):
    EmbeddedCollection(path, NEW).upsert([*items(1, 2)])
    with closing(sqlite3.connect(path.with_name("pets.sqlite"))) as older, older:
        older.execute("DROP TRIGGER with_their_item")
        older.execute("DROP TABLE objects")
    found = EmbeddedCollection(path)
    check(found, 1, 2)
    found.upsert([with_objects(2), with_objects(3)])
    assert found.count_objects() == 6
    found.close()
    with closing(sqlite3.connect(path.with_name("pets.sqlite"))) as older, older:
        older.execute("DELETE FROM items WHERE id = 'id 2'")
    assert EmbeddedCollection(path).count_objects() == 3


def test_only_a_full_disk_needs_space(path):
    found = EmbeddedCollection(path, NEW)
    found._database.execute("PRAGMA query_only = true")
    with pytest.raises(Unavailable, match="check the disk and the folder"):
        found.upsert(items(1))


def test_a_full_disk_refuses_changes_and_leaves_what_there_is(path):
    found = EmbeddedCollection(path, NEW)
    found.upsert(items(1, 2))
    pages = found._database.execute("PRAGMA page_count").fetchone()[0]
    found._database.execute(f"PRAGMA max_page_count = {pages}")  # simulates a full disk
    with pytest.raises(Unavailable, match="free some space"):
        found.upsert(items(*range(3, 100)))
    check(found, 1, 2)
    found._database.execute("PRAGMA max_page_count = 1000000")
    found.upsert(items(3))
    check(found, 1, 2, 3)


def test_a_snapshot_that_cannot_be_written_is_done_without(path, monkeypatch, caplog):
    found = EmbeddedCollection(path, NEW)
    monkeypatch.setattr(collection, "SNAPSHOT_EVERY", 2)

    def full(path: Path) -> str:
        raise OSError("no space left")

    monkeypatch.setattr(collection.checkpoint, "sha256", full)
    found.upsert(items(1, 2))
    check(found, 1, 2)
    assert [*path.parent.glob("*.partial"), *path.parent.glob("*.usearch")] == []
    assert "cannot write the snapshot of collection pets" in caplog.text


def test_removed_files_are_gone_and_stay_so(path, monkeypatch):
    found = EmbeddedCollection(path, NEW)
    found.upsert(items(1))
    found.save()
    synced = []
    monkeypatch.setattr(
        "os.fsync", lambda file: synced.append(Path(f"/proc/self/fd/{file}").resolve())
    )
    found.remove_files()
    assert list(path.parent.iterdir()) == []
    assert synced == [path.parent]


def test_what_is_acknowledged_is_on_the_disk(path):
    found = EmbeddedCollection(path, NEW)
    (mode,) = found._database.execute("PRAGMA journal_mode").fetchone()
    (synchronous,) = found._database.execute("PRAGMA synchronous").fetchone()
    assert (mode, synchronous) == ("wal", 2)  # 2 is FULL: each commit syncs the log
    found.close()
