"""A collection in a file survives crashes, full disks and damage; searches find what it has."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from samclip_core.errors import Unavailable
from services.retrieval import graph, objects
from services.retrieval.collection import EmbeddedCollection
from services.retrieval.index import Item
from services.retrieval.query import Query
from tests.vectors import D, finished, items, vector, with_objects


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pets"


NEW = "m", D, "float32"


def check(found: EmbeddedCollection, *seeds: int) -> None:
    assert len(found) == len(seeds)
    for seed in seeds:
        hit = finished(found.search(Query(vector(seed), 1)))[0]
        assert (hit.id, hit.metadata) == (f"id {seed}", {"seed": str(seed)})
    assert (found.digest, found.dimension, found.dtype) == NEW


@pytest.fixture
def small_graphs(monkeypatch):
    """Collections of more than two items have a graph."""
    monkeypatch.setattr(graph, "UNINDEXED", 2)
    monkeypatch.setattr(graph, "ADDED", 2)
    monkeypatch.setattr("services.retrieval.query.EXACT", 2)


def build(found: EmbeddedCollection) -> None:
    while found.build():
        pass


def with_graph(path: Path, *seeds: int) -> EmbeddedCollection:
    found = EmbeddedCollection(path, NEW)
    found.upsert(items(*seeds))
    build(found)
    assert path.with_name("pets.usearch").exists()
    return found


@pytest.mark.parametrize("end", ["close", "kill", "kill in a build", "close in a build"])
@pytest.mark.parametrize("built", [True, False])
def test_it_is_there_again_after_its_process_has_ended(path, end, built, small_graphs):
    found = EmbeddedCollection(path, NEW)
    found.upsert(items(1, 2, 3, 5, 6))
    found.build() if not built else build(found)
    found.delete(["id 1", "id 6"])
    found.upsert([*items(4, *range(7, 14)), Item("id 2", vector(2), {"seed": "2"})])
    if end.endswith("build"):
        found.build()
        found.delete(["id 13"])
    if end.startswith("close"):
        found.close()
    left = 2, 3, 4, 5, *range(7, 13 if end.endswith("build") else 14)
    check(found if end == "kill" else EmbeddedCollection(path), *left)
    again = EmbeddedCollection(path)
    check(again, *left)
    build(again)
    check(again, *left)
    assert {hit.id for hit in finished(again.search(Query(vector(1), 20)))} == {
        f"id {n}" for n in left
    }
    check(EmbeddedCollection(path), *left)


def statements(found: EmbeddedCollection) -> list[str]:
    """Return a list to which the statements of the collection's database are added."""
    traced = list[str]()
    found._database.set_trace_callback(traced.append)
    return traced


def test_items_that_are_replaced_again_and_again_need_no_graph(path, small_graphs, monkeypatch):
    """They are compared in memory: neither their old numbers nor the gaps between these count."""
    monkeypatch.setattr(graph, "PAGE", 2)
    monkeypatch.setattr(graph, "CACHED", 2)
    found = EmbeddedCollection(path, NEW)
    for _ in range(10):
        found.upsert(items(1, 2))
        build(found)
        check(found, 1, 2)
    assert not path.with_name("pets.usearch").exists()
    traced = statements(found)
    check(found, 1, 2)
    assert len([one for one in traced if "SELECT number, vector" in one]) == 0
    found.upsert(items(3))
    build(found)
    assert path.with_name("pets.usearch").exists()
    check(found, 1, 2, 3)


@pytest.mark.parametrize("searched", [True, False])
def test_items_with_far_numbers_are_read_and_kept_together(path, monkeypatch, searched):
    """A search costs the same, however many items were added and deleted between those left."""
    monkeypatch.setattr(graph, "PAGE", 10)
    found = EmbeddedCollection(path, NEW)
    for left in range(0, 400, 10):
        found.upsert(items(*range(left, left + 10)))
        if searched:
            finished(found.search(Query(vector(1), 1)))
        found.delete([f"id {seed}" for seed in range(left + 1, left + 10)])
    traced = statements(found)
    hits = finished(found.search(Query(vector(1), 50)))
    assert {hit.id for hit in hits} == {f"id {left}" for left in range(0, 400, 10)}
    reads = sum("SELECT number, vector" in one for one in traced)
    assert reads == (0 if searched else 5)  # four pages, and what follows: nothing
    assert len(found._graph._rest._pages) == 4


@pytest.mark.parametrize("turns", ["010101", "00101", "010011", "0001"])
def test_searches_in_turns_compare_all_rows_and_keep_them_once(path, monkeypatch, turns):
    monkeypatch.setattr(graph, "PAGE", 10)
    pets = EmbeddedCollection(path, NEW)
    pets.upsert(items(*range(30)))
    searches = [pets._graph.search(vector(1), 30) for _ in range(2)]
    for turn in turns:
        next(searches[int(turn)])
    for search in searches:
        assert sorted(finished(search)[0]) == [*range(1, 31)]
    assert [number for rows, _ in pets._graph.blocks() for number in rows] == [*range(1, 31)]


@pytest.mark.parametrize("deleted", [0, 30], ids=["added to the graph", "in a new graph"])
@pytest.mark.parametrize("built", [1, 2, 50])
def test_a_search_finds_all_rows_that_a_build_moves_meanwhile(
    path, small_graphs, monkeypatch, deleted, built
):
    monkeypatch.setattr(graph, "PAGE", 4)
    pets = with_graph(path, *range(40))
    pets.delete([f"id {seed}" for seed in range(deleted)])
    pets.upsert(items(*range(40, 50)))
    steps = pets._graph.search(vector(1), 100)
    for _ in range(2):
        next(steps)
        for _ in range(built):
            pets.build()
    assert sorted(finished(steps)[0]) == [*range(deleted + 1, 51)]


def test_rows_are_counted_once_and_not_after_each_change(path, small_graphs, monkeypatch):
    monkeypatch.setattr(graph, "UNINDEXED", 20)
    found = EmbeddedCollection(path, NEW)
    found.upsert(items(*range(9)))
    build(found)
    traced = statements(found)
    for seed in range(30):
        found.upsert(items(seed % 15))
        found.delete([f"id {seed % 7}"])
        assert not found.build()
    assert [one for one in traced if "COUNT" in one] == []
    found.upsert(items(*range(20)))
    build(found)
    assert not path.with_name("pets.usearch").exists()
    found.upsert(items(20))
    build(found)
    assert path.with_name("pets.usearch").exists()
    check(found, *range(21))


@pytest.mark.parametrize("cached", [2, 128])
def test_searches_find_what_is_there_after_any_changes(path, monkeypatch, cached):
    monkeypatch.setattr(graph, "UNINDEXED", 30)
    monkeypatch.setattr(graph, "ADDED", 7)
    monkeypatch.setattr(graph, "PAGE", 4)
    monkeypatch.setattr(graph, "CACHED", cached)
    random = np.random.default_rng(7)
    found, there = EmbeddedCollection(path, NEW), set[int]()
    for step in range(300):
        seeds = {int(seed) for seed in random.integers(0, 80, random.integers(1, 12))}
        if random.random() < 0.5:
            found.upsert(items(*seeds))
            there |= seeds
        else:
            found.delete([f"id {seed}" for seed in seeds])
            there -= seeds
        if random.random() < 0.3:
            found.build()
        if random.random() < 0.05:
            found.close()
            found = EmbeddedCollection(path)
        hits = finished(found._graph.search(vector(step % 80), 100))[0]
        assert len(hits) == len({*hits.tolist()}) == len(there) == len(found)
    assert not found._graph.is_empty


@pytest.mark.parametrize("damage", ["empty", "other", "a byte", "lost with the power"])
def test_a_damaged_snapshot_is_made_anew(path, damage, small_graphs):
    with_graph(path, 1, 2, 3).close()
    snapshot = path.with_name("pets.usearch")
    content, before = bytearray(snapshot.read_bytes()), snapshot.stat()
    content[len(content) // 2] ^= 0xFF
    zeros = bytes(before.st_size)
    damaged = {"empty": b"", "other": b"garbage" * 50, "a byte": content}
    snapshot.write_bytes(damaged.get(damage, zeros))
    if damage == "lost with the power":
        os.utime(snapshot, ns=(before.st_atime_ns, before.st_mtime_ns))
    check(EmbeddedCollection(path), 1, 2, 3)


def test_an_intact_snapshot_is_mapped_and_not_read(path, small_graphs, monkeypatch):
    with_graph(path, 1, 2, 3).close()

    def read(file: Path) -> str:
        raise AssertionError(f"{file} was read")

    monkeypatch.setattr(graph.checkpoint, "sha256", read)
    again = EmbeddedCollection(path)
    assert not again._graph.is_empty
    check(again, 1, 2, 3)


def test_a_copied_folder_keeps_its_graph(path, tmp_path, small_graphs):
    with_graph(path, 1, 2, 3).close()
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tmp_path.glob("pets.*"):
        (copy / file.name).write_bytes(file.read_bytes())
    again = EmbeddedCollection(copy / "pets")
    assert not again._graph.is_empty
    check(again, 1, 2, 3)


def test_a_graph_finds_what_is_left_after_most_is_deleted(path, small_graphs, monkeypatch):
    monkeypatch.setattr("services.retrieval.query.WALK", 16)
    found = with_graph(path, *range(100))
    found.delete([f"id {seed}" for seed in range(95)])
    check(found, 95, 96, 97, 98, 99)
    size = path.with_name("pets.usearch").stat().st_size
    build(found)  # without the deleted items
    assert path.with_name("pets.usearch").stat().st_size < 0.2 * size
    check(found, 95, 96, 97, 98, 99)
    found.upsert(items(*range(200, 290)))
    build(found)
    check(found, 95, 96, 97, 98, 99, *range(200, 290))


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


@pytest.mark.parametrize(
    "sequence", ["DELETE FROM sqlite_sequence", "UPDATE sqlite_sequence SET seq = 1"]
)
@pytest.mark.parametrize("deleted", [(), ("id 3",)])
def test_a_repaired_file_takes_items(path, small_graphs, sequence, deleted):
    """Its sequence may be lost or behind. No number of an item in the graph is used again."""
    found = with_graph(path, 1, 2, 3)
    found.delete(deleted)
    found.close()
    with closing(sqlite3.connect(path.with_name("pets.sqlite"))) as repaired, repaired:
        repaired.execute(sequence)
    again = EmbeddedCollection(path)
    again.upsert(items(4, 5))
    again.upsert(items(6))
    left = [seed for seed in range(1, 7) if f"id {seed}" not in deleted]
    check(again, *left)
    build(again)
    check(again, *left)


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
        found.upsert(items(*range(3, 1000)))
    check(found, 1, 2)
    found._database.execute("PRAGMA max_page_count = 1000000")
    found.upsert(items(3))
    check(found, 1, 2, 3)


@pytest.mark.parametrize("before", [(), (1, 2, 3)])
def test_a_snapshot_that_cannot_be_written_is_done_without(
    path, monkeypatch, caplog, small_graphs, before
):
    found = with_graph(path, *before) if before else EmbeddedCollection(path, NEW)
    found.upsert(items(4, 5, 6))
    with monkeypatch.context() as patch:

        def full(path: Path) -> str:
            raise OSError("no space left")

        patch.setattr(graph.checkpoint, "sha256", full)
        build(found)
        check(found, *before, 4, 5, 6)
        assert [*path.parent.glob("*.partial")] == []
        assert path.with_name("pets.usearch").exists() is bool(before)
        assert "cannot write the snapshot of collection pets" in caplog.text
        attempts = caplog.text.count("cannot write")
        build(found)
        assert caplog.text.count("cannot write") == attempts  # not once per request
    check(EmbeddedCollection(path), *before, 4, 5, 6)
    found.upsert(items(7, 8, 9))
    build(found)
    found.close()
    again = EmbeddedCollection(path)
    assert [*again._graph.blocks()] == []  # all are in the graph
    check(again, *before, 4, 5, 6, 7, 8, 9)


@pytest.mark.parametrize("other", [None, b"", b"garbage" * 50, "another graph"])
def test_a_snapshot_that_is_taken_away_is_made_anew(path, small_graphs, tmp_path, other):
    found = with_graph(path, 1, 2, 3)
    snapshot = path.with_name("pets.usearch")
    if other == "another graph":
        (tmp_path / "other").mkdir()
        with_graph(tmp_path / "other/pets", *range(50, 60)).close()
        other = (tmp_path / "other/pets.usearch").read_bytes()
    snapshot.unlink()
    if other is not None:
        snapshot.write_bytes(other)
    check(found, 1, 2, 3)
    found.upsert(items(4, 5, 6))
    found.build()
    check(found, 1, 2, 3, 4, 5, 6)
    build(found)
    check(found, 1, 2, 3, 4, 5, 6)
    found.close()
    check(EmbeddedCollection(path), 1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize("error", [RuntimeError("Out of memory!"), sqlite3.DatabaseError("bad")])
def test_a_graph_that_cannot_be_built_is_done_without(
    path, small_graphs, caplog, monkeypatch, error
):
    found = with_graph(path, 1, 2, 3)
    found.upsert(items(4, 5, 6))
    add = Mock(side_effect=error)
    monkeypatch.setattr(graph.Index, "add", add)
    build(found)
    build(found)
    assert add.call_count == 1
    assert "the graph of collection pets cannot be built" in caplog.text
    found.upsert(items(7))
    check(found, 1, 2, 3, 4, 5, 6, 7)


def test_a_search_among_deleted_items_gives_way_after_each_walk(path, small_graphs):
    found = with_graph(path, *range(100))
    found.delete([f"id {seed}" for seed in range(40)])
    walks = [*found._graph.search(vector(1), 60)]
    assert len(walks) == 1  # and then all rows were found


def test_removed_files_are_gone_and_stay_so(path, monkeypatch, small_graphs):
    found = with_graph(path, 1, 2, 3)
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
