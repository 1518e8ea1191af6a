"""Processes that write collections are killed, write the same at once, or lose what they wrote."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.retrieval import backup
from services.retrieval.index import Collections
from services.retrieval.query import Query
from services.retrieval.registry import ENTRIES, Registry
from services.retrieval.rows import Item
from tests.checkout import ROOT, sources
from tests.vectors import MODEL, D, items, vector, with_objects

WRITER = """
import io, itertools, sys, threading, time
from contextlib import suppress
from pathlib import Path
from samclip_core.errors import Unavailable
from services.retrieval import backup, builds, registry, restore
from services.settings import Settings
from tests.integration.test_killed_while_indexing import changes, opened
builds.FRAGMENTS, builds.INDEXED = 6, 300  # something is built all the time
registry.ANNOUNCED_S = 2
place, others = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes()
collections = opened(place)
def build():
    if work := collections.registry.due():
        work()
def back_up():
    backup.write(opened(place), io.BytesIO())
def bring_back():
    restore.read(io.BytesIO(others), "others", opened(place), Settings())
def again(call):
    while True:
        with suppress(Unavailable):
            call()
        time.sleep(0.01)
for call in (build, back_up, bring_back):
    threading.Thread(target=again, args=[call], daemon=True).start()
print("ready", flush=True)
for item in itertools.islice(changes(), int(sys.argv[3]), None):
    is_done = False
    while not is_done:
        with suppress(Unavailable):
            pets = collections.get("pets")
            pets.upsert([item]) if item.metadata["seed"] != "0" else pets.delete([item.id])
            is_done = True
    print("done", flush=True)
"""
SAME = """
import sys
from pathlib import Path
from tests.integration.test_killed_while_indexing import opened
from tests.vectors import with_objects
pets = opened(Path(sys.argv[1])).get_or_make("pets", "float32")
for number in range(int(sys.argv[2]), 40, 2):
    pets.upsert([with_objects(number, f"id {id}", 2) for id in range(5)])
    pets.delete([f"gone {number}"])
    pets.upsert([with_objects(number, f"gone {number - 1}", 1)])
"""
SLOW = [pytest.mark.slow, pytest.mark.timeout(6000)]
STORED = 400
"""Items beside those that change, enough for an index."""


def opened(place: Path) -> Collections:
    return Collections(Registry(place), MODEL, D)


def changes() -> Iterator[Item]:
    """Yield items to add, with and without objects, and with seed 0 items to delete."""
    for number in itertools.count(1):
        id = f"id {number % 5}"
        yield with_objects(number if number % 7 else 0, id, number % 4)


def after(done: int) -> dict[str, tuple[str, bytes]]:
    """Return the seed and the objects of each item after so many changes."""
    held = dict[str, tuple[str, bytes]]()
    for item in itertools.islice(changes(), done):
        held.pop(item.id, None)
        if item.metadata["seed"] != "0":
            held[item.id] = item.metadata["seed"], item.objects
    return held


def started(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{sources()}"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )


@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=SLOW)])
def test_what_is_acknowledged_outlives_kills(tmp_path, kills):
    """An item and its objects agree, nothing is there twice, and the index opens at once."""
    index, others, done = tmp_path / "index", tmp_path / "others", 0
    stored = [Item(f"other {n}", vector(1000 + n), {"seed": "-"}) for n in range(STORED)]
    opened(index).get_or_make("pets", "float32").upsert(stored)
    with others.open("wb") as output:
        backup.write(opened(index), output)
    for kill in range(kills):
        with started(WRITER, index, others, done) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            wanted = 1 + 7 * kill % 30
            done += sum(line == "done\n" for line in itertools.islice(writer.stdout, wanted))
            writer.kill()
            done += sum(line == "done\n" for line in writer.stdout)  # acknowledged before
        pets = opened(index).get("pets")
        stored = [item for item in pets.stored() if item.metadata["seed"] != "-"]
        held = {item.id: (item.metadata["seed"], item.objects) for item in stored}
        assert held in (after(done), after(done + 1))  # the last one was not acknowledged
        assert len(pets) == STORED + len(stored) == STORED + len(held)
        found = {hit.id for hit, _ in pets.search_objects(Query(vector(1), 99))}
        assert found == {id for id, (_, packed) in held.items() if packed}


def test_processes_that_write_the_same_lose_and_double_nothing(tmp_path):
    with started(SAME, tmp_path, 0) as even, started(SAME, tmp_path, 1) as odd:
        assert (even.wait(300), odd.wait(300)) == (0, 0)
    pets = opened(tmp_path).get("pets")
    held = {item.id: item for item in pets.stored()}
    assert len(pets) == len(held)
    for id in (f"id {number}" for number in range(5)):
        assert held[id].objects in [with_objects(last, id, 2).objects for last in (38, 39)]
    found = {hit.id for hit, _ in pets.search_objects(Query(vector(1), 99))}
    assert found == held.keys()


@pytest.mark.parametrize("left", [0, 0.5])
@pytest.mark.parametrize("table", ["items", "objects", ENTRIES])
@pytest.mark.parametrize("part", ["_versions", "data"])
def test_a_write_that_the_disk_has_lost_leaves_the_version_before(
    tmp_path, caplog, part, table, left
):
    collections = opened(tmp_path)
    pets = collections.get_or_make("pets", "float32")
    pets.upsert([with_objects(1)])
    before = {item.id for item in pets.items("", 9)}
    pets.upsert([with_objects(2)])
    if table == ENTRIES:
        collections.get_or_make("lost", "float32")
    name = {"items": pets.entry.table, "objects": f"{pets.entry.table}.objects"}.get(table, table)
    files = [*(tmp_path / f"{name}.lance" / part).glob("*.[lm]a*")]
    newest = max(files, key=lambda file: file.stat().st_mtime_ns)
    os.truncate(newest, int(left * newest.stat().st_size))
    again = opened(tmp_path)
    assert [one.name for one in again.describe()] == ["pets"]
    found = again.get("pets")
    assert {item.id for item in found.items("", 9)} == (
        before if table == "items" else {"id 1", "id 2"}
    )
    assert "id 1" in {hit.id for hit, _ in found.search_objects(Query(vector(1), 9))}
    assert "the newest version of table" in caplog.text
    found.upsert([with_objects(3)])
    assert {"id 1", "id 3"} <= {item.id for item in opened(tmp_path).get("pets").stored()}


def test_what_an_interrupted_change_left_is_not_found_and_goes(tmp_path, monkeypatch):
    pets = opened(tmp_path).get_or_make("pets", "float32")
    pets.upsert([with_objects(1), *items(2)])
    with monkeypatch.context() as patch:
        patch.setattr(type(pets._items), "merge_insert", None)
        with pytest.raises(TypeError):
            pets.upsert([with_objects(1), with_objects(3)])
    assert pets.count_objects() == 9
    hits = pets.search_objects(Query(vector(1), 9))
    assert [hit.id for hit, _ in hits] == ["id 1"]
    monkeypatch.setattr("services.retrieval.collection.SETTLED_MS", -1)
    pets.sweep()
    assert pets.count_objects() == 3
    assert pets.search_objects(Query(vector(1), 9)) == hits
