"""samclip backup and restore."""

import base64
import gzip
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import count, islice
from pathlib import Path
from shutil import rmtree
from time import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lancedb.table import LanceTable
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import InvalidRequest, Unavailable
from services.retrieval import backup, builds, restore, tables
from services.retrieval.collection import Collection, Entry
from services.retrieval.concepts import Concept, Concepts
from services.retrieval.index import Collections
from services.retrieval.object_search import drawn
from services.retrieval.query import Query
from services.retrieval.registry import Registry, Staged
from services.retrieval.rows import Item
from services.retrieval.tables import Store
from services.settings import Settings
from tests.vectors import HOSTILE, MODEL, OTHER, D, vector, with_objects

COUNT = 600  # more than two pages
QUERIES = [
    Query(vector(seed), top_k=20, offset=offset) for seed in (9001, 9002) for offset in (0, 590)
]
Use = Callable[[str], None]
"""Sets the index to one of two folders."""


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Use:
    return lambda store: monkeypatch.setenv("SAMCLIP_INDEX_DIR", str(tmp_path / store))


def fill() -> None:
    """Add three collections: of everybody, of a tenant, and of another model and precision."""
    texts = [text[:200] for text in HOSTILE]
    metadata = [{"text": text, text: "key"} for text in texts]
    with backup.opened() as index:
        items = [
            Item(f"{texts[i % len(texts)]} {i}", vector(i), metadata[i % len(metadata)])
            for i in range(COUNT)
        ]
        items[5::200] = [replace(item, objects=with_objects(9).objects) for item in items[5::200]]
        items[1] = replace(items[1], objects=with_objects(8, count=5).objects)
        index.of_model(MODEL, D).get_or_make("pets", "float32").upsert(items)
        ours = index.of_model(MODEL, D).of_tenant("acme")
        ours.get_or_make("pets", "float32").upsert(items[:3])
        index.of_model(OTHER, D).get_or_make("old", "int8+bfloat16:4caf4841").upsert(items[:2])


def shown(index: Collections) -> object:
    """Return everything that a caller can see of the index; scores agree as float32 do."""
    of_model = {MODEL: index.of_model(MODEL, D), OTHER: index.of_model(OTHER, D)}
    answers = []
    for description in index.describe():
        tenant, _, name = description.name.rpartition("@")
        collection = of_model[description.digest].of_tenant(tenant).get(name)
        listed = collection.items("", COUNT)
        found = [
            sorted(near(hit) for hit in hits)
            for query in QUERIES
            for hits in (collection.search(query), drawn(collection.search_objects(query)))
        ]
        answers.append((description, listed, found))
    return answers


def near(hit: pb.Hit) -> tuple[object, ...]:
    """Return a hit, whose score may be rounded otherwise, and so its place among near ones."""
    return hit.id, pytest.approx(hit.score, abs=1e-6), hit.metadata, hit.mask


def run_backup(file: Path) -> None:
    assert backup.main([str(file)]) == 0
    assert file.stat().st_mode & 0o777 == 0o600


def test_searches_in_a_restored_index_are_identical(use, tmp_path):
    use("a")
    fill()
    with backup.opened() as index:
        before = shown(index)
        vectors = [index.of_any_model("pets").vector(f"{HOSTILE[0]} 0")]
    run_backup(tmp_path / "backup")
    use("b")
    for _ in range(2):  # an interrupted run can be repeated
        assert restore.main([str(tmp_path / "backup")]) == 0
        with backup.opened() as index:
            assert shown(index) == before
            vectors.append(index.of_any_model("pets").vector(f"{HOSTILE[0]} 0"))
    np.testing.assert_allclose(vectors[1:], [vectors[0]] * 2, atol=1e-6)


def test_a_backup_goes_through_pipes(use, monkeypatch, capsysbinary):
    """As `docker compose exec` and `kubectl exec` pass it on."""
    use("a")
    fill()
    with backup.opened() as index:
        before = shown(index)
    assert backup.main(["-"]) == 0
    piped = io.BytesIO(capsysbinary.readouterr().out)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(piped))
    use("b")
    assert restore.main(["-"]) == 0
    with backup.opened() as index:
        assert shown(index) == before


def test_a_version_that_is_still_there_brings_back_what_was_deleted(use, tmp_path, capsys):
    use("a")
    fill()
    with backup.opened() as index:
        pets, before = index.of_any_model("pets"), shown(index)
        version = pets.version
        pets.delete([item.id for item in pets.items("", COUNT)])
    assert backup.main([str(tmp_path / "file"), f"pets={version}", "old"]) == 0
    for chosen, refusal in (
        (f"pets={version + 9}", f"'pets' has no version {version + 9}: choose one from 1 to"),
        ("nobody=1", "no collection 'nobody'"),
        (f"old={version}", "a collection is named twice"),
    ):
        assert backup.main([str(tmp_path / "bad"), "old", chosen]) == 1
        assert refusal in capsys.readouterr().err
    with pytest.raises(SystemExit):
        backup.main([str(tmp_path / "bad"), "pets=new"])
    assert "expected NAME, or NAME=VERSION with a number" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()
    assert restore.main([str(tmp_path / "file")]) == 0
    with backup.opened() as index:
        assert shown(index) == before
    use("b")
    assert restore.main([str(tmp_path / "file")]) == 0
    with backup.opened() as index:
        assert [(one.name, one.count) for one in index.describe()] == [("old", 2), ("pets", COUNT)]


def test_an_item_that_restore_would_not_read_ends_a_backup(use, tmp_path, capsys):
    use("a")
    long = with_objects(7)
    long = replace(long, objects=long.objects + bytes(13 * 2**20))
    with backup.opened() as index:
        index.of_model(MODEL, D).get_or_make("pets", "float32").upsert([with_objects(1), long])
    assert backup.main([str(tmp_path / "file")]) == 1
    said = capsys.readouterr().err
    assert "item 'id 7' of collection 'pets' has 18,1" in said
    assert "and samclip restore reads 16,777,216" in said
    assert not (tmp_path / "file").exists()


def test_a_damaged_backup_changes_nothing(use, tmp_path, capsys):
    use("a")
    fill()
    file = tmp_path / "backup"
    run_backup(file)
    content = file.read_bytes()
    lines = gzip.decompress(content).splitlines(keepends=True)
    use("b")
    for damaged in (
        content[:-9],
        gzip.compress(b"".join(lines[:100])),
        content[:5000] + bytes([content[5000] ^ 255]) + content[5001:],
        b"PK\3\4",  # another file
    ):
        file.write_bytes(damaged)
        assert restore.main([str(file)]) == 1
        assert "copy it again" in capsys.readouterr().err
    with backup.opened() as index:
        assert not index.describe()


def encoded(*values: float) -> str:
    return base64.b64encode(np.array(values, "<f4").tobytes()).decode()


COLLECTION = {"name": "pets", "count": 1, "dimension": D, "digest": MODEL, "dtype": "float32"}
ITEM = {"id": "cat", "metadata": {}, "vector": encoded(*vector(1))}


def written(file: Path, *lines: object) -> None:
    """Write a backup with these lines, and a last line that counts the items."""
    count = sum(isinstance(line, dict) and "id" in line for line in lines)
    all_lines = [backup.HEADER, *lines, {"items": count}]
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, all_lines)).encode()))


BAD_COLLECTIONS: list[dict[str, object]] = [
    {"name": "../../outside@pets"},
    {"name": "a@b@pets"},
    {"dimension": 10**9},
    {"digest": None},
    {"dtype": "nonsense"},
    {"dtype": "float32 "},
    {"dtype": "int8:" + "a" * 65},
]
BAD_ITEMS: list[object] = [
    ITEM | {"vector": "AAAA"},
    ITEM | {"vector": encoded(*[np.nan] * D)},
    ITEM | {"metadata": [1]},
    ITEM | {"id": None},
    ITEM | {"objects": "AAAA"},
    ITEM | {"objects": base64.b64encode(with_objects(1).objects[:-20]).decode()},
    {"id": "cat"},
    3,
    ["id"],
]


def test_a_backup_that_somebody_has_made_up_changes_nothing(use, tmp_path, capsys):
    use("a/index")
    written(tmp_path / "good", {"collection": COLLECTION}, ITEM)
    assert restore.main([str(tmp_path / "good")]) == 0

    def files() -> list[Path]:
        return sorted(file for file in tmp_path.rglob("*") if "_refs" not in file.parts)

    before = files()
    for lines in (
        [ITEM],
        *([{"collection": COLLECTION | bad}, ITEM] for bad in BAD_COLLECTIONS),
        *([{"collection": COLLECTION}, bad] for bad in BAD_ITEMS),
    ):
        written(tmp_path / "good", *lines)
        assert restore.main([str(tmp_path / "good")]) == 1
        assert "damaged" in capsys.readouterr().err
        assert files() == before


def concepts(digest: str = "0" * 64, **fields: object) -> dict[str, object]:
    """Return a description of everybody's concepts."""
    name = f"+concepts@{digest[:12]}"
    return {"collection": COLLECTION | {"name": name, "digest": digest, "dtype": ""} | fields}


CONCEPT = ITEM | {"id": "my mug", "metadata": {"examples": "3"}}
FIRST = [{"collection": COLLECTION | {"name": "first"}}, ITEM]
LAST = {"collection": COLLECTION | {"name": "last"}}
PACKED = base64.b64encode(with_objects(8, count=5).objects).decode()
REFUSED: dict[str, tuple[list[object], str]] = {
    "precision": ([{"collection": COLLECTION | {"dtype": "bfloat16"}}, ITEM], "in float32, but"),
    "dimension": (
        [{"collection": COLLECTION | {"dimension": 2}}, ITEM | {"vector": encoded(1, 0)}],
        f"'pets' has vectors of {D} numbers, expected 2",
    ),
    "model": ([{"collection": COLLECTION | {"digest": OTHER}}, ITEM], "cannot be compared"),
    "items": ([LAST, *(ITEM | {"id": str(n)} for n in range(6))], "limit of 5"),
    "new items": ([{"collection": COLLECTION}, *(ITEM | {"id": f"{n}"} for n in range(5))], "1 it"),
    "objects": ([LAST, *(ITEM | {"id": f"{n}", "objects": PACKED} for n in range(3))], "limit of"),
    "collections": ([LAST, {"collection": COLLECTION | {"name": "x"}}], "are 3 collections"),
    "the same twice": ([*FIRST], "'first' comes twice"),
    "a concept's examples": ([concepts(), CONCEPT | {"metadata": {}}], "not a number of"),
    "a concept's number": (
        [concepts(), CONCEPT | {"metadata": {"examples": "-1"}}],
        "not a number",
    ),
    "a concept's name": ([concepts(), CONCEPT | {"id": "concept:x"}], "no name of a concept"),
    "a concept's objects": ([concepts(), CONCEPT | {"objects": PACKED}], "which only images"),
    "concepts' precision": ([concepts(dtype="float32"), CONCEPT], "have a precision"),
    "concepts' model": (
        [concepts(digest="1" * 64, name="+concepts@x"), CONCEPT],
        "lack the name of",
    ),
    "too many concepts": (
        [concepts("1" * 64), *(CONCEPT | {"id": f"c {n}"} for n in range(2))],
        "there are 2 concepts already",
    ),
    "a long id": ([LAST, ITEM | {"id": "a" * 257}], "the id has 257 characters, expected 1 to 256"),
    "metadata": ([LAST, ITEM | {"metadata": {"a": "b" * 4096}}], "has 4,097 bytes, at most 4,096"),
    "no item": ([{"collection": COLLECTION}, ITEM | {"id": "dog", "vector": "AAAA"}], "damaged"),
    "a second end": ([{"items": 1}, {"collection": LAST}], "damaged"),
}


def shown_items(collection: Collection) -> list[object]:
    return [(item.id, dict(item.metadata), item.objects) for item in collection.stored()]


@pytest.mark.parametrize("what", REFUSED)
def test_a_restore_that_is_refused_has_changed_nothing(use, tmp_path, what, monkeypatch, capsys):
    """An earlier collection of the file, which is fine, is not added either."""
    for name, most in (("COLLECTIONS", 3), ("COLLECTION_ITEMS", 5), ("COLLECTION_OBJECTS", 12)):
        monkeypatch.setenv(f"SAMCLIP_MAX_{name}", str(most))
    monkeypatch.setattr("services.retrieval.concepts.MAX_CONCEPTS", 2)
    use("a")
    written(tmp_path / "good", {"collection": COLLECTION}, ITEM, concepts(), CONCEPT)
    assert restore.main([str(tmp_path / "good")]) == 0
    with backup.opened() as index:
        before = [(index.describe(), shown_items(each)) for each in index.every()]
    lines, expected = REFUSED[what]
    written(tmp_path / "bad", *FIRST, *lines)
    assert restore.main([str(tmp_path / "bad")]) == 1
    assert expected in capsys.readouterr().err
    with backup.opened() as index:
        assert [(index.describe(), shown_items(each)) for each in index.every()] == before
        assert Concepts(index, "", "0" * 64, D, 0).all()["my mug"].examples == 3


def test_a_lost_collection_is_restored_once_it_is_deleted(use, tmp_path, capsys):
    use("a")
    written(tmp_path / "good", {"collection": COLLECTION}, ITEM)
    assert restore.main([str(tmp_path / "good")]) == 0
    name = "pets"
    with backup.opened() as index:
        rmtree(tmp_path / "a" / f"{index.registry.find(name).entry.table}.lance")
    assert restore.main([str(tmp_path / "good")]) == 1
    assert f"{name!r} cannot be read, and nothing has changed" in capsys.readouterr().err
    with backup.opened() as index:
        index.registry.remove(name)
    assert restore.main([str(tmp_path / "good")]) == 0


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_forged_backup_changes_nothing_or_leaves_an_index_that_answers(tmp_path_factory, data):
    """Any field of any line is replaced by anything, or lines are dropped, doubled and swapped."""
    tmp_path = tmp_path_factory.mktemp("forged")
    lines: list[dict] = json.loads(json.dumps([*FIRST, concepts(), CONCEPT, LAST, ITEM]))
    anything = st.none() | st.integers() | st.floats() | st.text(max_size=9) | st.just(OTHER)
    anything |= st.sampled_from(["+concepts@x", "a@b", encoded(1, 0), PACKED, {}, [], {"a": "b"}])
    for _ in range(data.draw(st.integers(1, 3))):
        line = data.draw(st.sampled_from(lines))
        inner = line.get("collection", line) if isinstance(line, dict) else {}
        if inner and data.draw(st.booleans()):
            inner[data.draw(st.sampled_from([*inner]))] = data.draw(anything)
        else:
            lines = data.draw(st.permutations([*lines, line]))[: data.draw(st.integers(1, 8))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMCLIP_INDEX_DIR", str(tmp_path / "index"))
        written(tmp_path / "file", *lines)
        done = restore.main([str(tmp_path / "file")])
        with backup.opened() as index:
            assert (done == 0) >= bool(index.every())
            for described in index.describe():
                ours, name = index.of_model(described.digest, described.dimension).of_owner(
                    described.name
                )
                query = Query(np.eye(described.dimension, dtype=np.float32)[0], 9)
                assert len(ours.get(name).search(query)) == described.count
            for digest in ("0" * 64, MODEL, OTHER):
                held = Concepts(index, "", digest, D, 0)
                assert all(each.examples > 0 for each in held.all().values())
                with suppress(InvalidRequest):
                    held.usable([])
                one = Concept("new", 1, digest, vector(1), np.empty(0, np.float32))
                held.put(one, Settings())
                assert held.usable(["new"])


@pytest.mark.parametrize(("model", "dtype"), [(OTHER, "float32"), (MODEL, "int8:4caf4841")])
def test_a_collection_that_is_made_again_during_a_backup_ends_it(
    use, tmp_path, model, dtype, monkeypatch, capsys
):
    """Its new vectors would otherwise be stored under the old model."""
    use("a")
    with backup.opened() as index:
        items = [Item(f"{number:04}", vector(number), {}) for number in range(COUNT)]
        index.of_model(MODEL, D).get_or_make("pets", "float32").upsert(items)
    all_lines = backup._lines

    def made_again(*given: object) -> Iterator[backup.Line]:
        lines = all_lines(*given)
        yield from islice(lines, 2)  # before the first item
        with backup.opened() as other:
            other.drop("pets")
            other.of_model(model, D).get_or_make("pets", dtype).upsert(items)
        yield from lines

    monkeypatch.setattr(backup, "_lines", made_again)
    assert backup.main([str(tmp_path / "backup")]) == 1
    assert "'pets' was deleted and made again with another model" in capsys.readouterr().err
    assert not (tmp_path / "backup").exists()


def test_what_a_service_changes_during_a_restore_counts_as_later(use, tmp_path, monkeypatch):
    use("there")
    fill()
    file = str(tmp_path / "backup")
    assert backup.main([file]) == 0
    put = Registry.put
    with backup.opened() as service:
        pets = service.of_model(MODEL, D).get("pets")
        gone, replaced = (item.id for item in pets.items("", 2))

        def later(registry: Registry, staged: Sequence[Staged]) -> None:
            pets.upsert([with_objects(1, "new", count=2), Item(replaced, vector(1), {"is": "new"})])
            pets.delete([gone])
            put(registry, staged)

        monkeypatch.setattr(Registry, "put", later)
        assert restore.main([file]) == 0
        with pytest.raises(Unavailable, match="meanwhile: try again"):  # the table is replaced
            pets.upsert([Item("lost", vector(1), {})])
    with backup.opened() as index:
        pets = index.of_model(MODEL, D).get("pets")
        assert pets.held(["new", replaced, gone, "lost"]) == {"new", replaced}
        assert len(pets) == COUNT
        assert [*pets.listed([replaced])[0].metadata] == ["is"]
        assert "new" in {hit.id for hit, _ in pets.search_objects(Query(vector(1), 99))}


@pytest.mark.parametrize("change", ["upsert", "delete"])
def test_a_change_whose_table_a_restore_has_replaced_is_not_acknowledged(
    use, tmp_path, monkeypatch, change
):
    use("there")
    file = tmp_path / "file"
    written(file, {"collection": COLLECTION}, ITEM)
    assert restore.main([str(file)]) == 0
    with backup.opened() as service:
        pets = service.of_any_model("pets")
        monkeypatch.setattr(pets, "_forget", lambda _: restore.main([str(file)]))
        with pytest.raises(Unavailable, match="meanwhile: try again"):
            getattr(pets, change)({"upsert": [with_objects(1)], "delete": ["cat"]}[change])


class Ended(BaseException):
    """The process of a restore has ended."""


class Steps:
    """Counts the steps of a restore: something happens before one, and at the next it ends."""

    def __init__(self, patch: pytest.MonkeyPatch, left: int, happens: Callable[[], None]):
        self._left, self._happens, self._counts = left, happens, True
        for name in ("merge_insert", "update", "delete", "search"):
            patch.setattr(LanceTable, name, self._step(getattr(LanceTable, name)))
        patch.setattr(Store, "keep", self._step(Store.keep))

    def _step(self, call: Callable[..., object]) -> Callable[..., object]:
        def step(*given: object, **named: object) -> object:
            if self._counts:
                self._left -= 1
                if self._left < -1:
                    raise Ended
                if self._left == -1:
                    self._counts = False
                    self._happens()
                    self._counts = True
            return call(*given, **named)

        return step


def test_a_restore_that_ends_at_any_step_loses_nothing_that_was_acknowledged(
    use, tmp_path, monkeypatch
):
    """What a service stored just before the new table took the old one's place was lost."""
    use("there")
    file = tmp_path / "file"
    written(file, {"collection": COLLECTION}, ITEM)
    assert restore.main([str(file)]) == 0
    with backup.opened() as service:
        allowed = dict[str, set[str | None]]({"cat": {""}})  # by id: its seed, None for no item

        def change(number: int) -> None:
            pets, new = service.of_any_model("pets"), f"{number}"
            added = [Item(id, vector(number), {"seed": new}) for id in ("same", new)]
            gone = f"{number - 1}"
            for call, changes in (
                (partial(pets.upsert, added), {"same": new, new: new}),
                (partial(pets.delete, [gone]), {gone: None}),
            ):
                before = {id: allowed.get(id, {None}) for id in changes}
                try:
                    call()
                    allowed.update({id: {seed} for id, seed in changes.items()})
                except Unavailable:
                    allowed.update({id: {seed, *before[id]} for id, seed in changes.items()})

        done = None
        for number in count(5):
            with monkeypatch.context() as patch, suppress(Ended):
                Steps(patch, number, partial(change, number))
                done = restore.main([str(file)])
            with monkeypatch.context() as patch:  # a minute later
                patch.setattr("services.retrieval.registry.ANNOUNCED_S", -1)
                assert service.of_any_model("pets").delete(["cat"]) <= 1
            allowed["cat"] = {None}
            with backup.opened() as index:
                found = {
                    one.id: one.metadata.get("seed", "")
                    for one in index.of_any_model("pets").stored()
                }
            for id in allowed.keys() | found:
                assert found.get(id) in allowed.get(id, {None}), (number, id)
            if done is not None:
                break
    assert done == 0


def test_a_failure_after_a_restore_is_visible_loses_nothing(use, tmp_path, monkeypatch, capsys):
    use("there")
    written(tmp_path / "file", {"collection": COLLECTION}, ITEM)

    def fails(*_: object) -> None:
        raise Unavailable("the index failed")

    assert restore.main([str(tmp_path / "file")]) == 0
    monkeypatch.setattr(Collection, "follow", fails)
    assert restore.main([str(tmp_path / "file")]) == 1
    assert "the index failed" in capsys.readouterr().err
    with backup.opened() as index:
        assert [item.id for item in index.of_any_model("pets").stored()] == ["cat"]


def test_a_collection_that_is_made_during_its_restore_stays(use, tmp_path, monkeypatch, capsys):
    use("there")
    fill()
    file = str(tmp_path / "backup")
    assert backup.main([file]) == 0
    use("empty")
    put = Registry.put

    def later(registry: Registry, staged: Sequence[Staged]) -> None:
        with backup.opened() as service:
            service.of_model(MODEL, D).get_or_make("pets", "float32").upsert([with_objects(1)])
        put(registry, staged)

    monkeypatch.setattr(Registry, "put", later)
    assert restore.main([file]) == 1
    assert "try again" in capsys.readouterr().err
    with backup.opened() as index:
        assert [one.count for one in index.describe()] == [1]


def test_a_restore_of_more_than_a_day_ends_before_its_tables_are_removed(
    use, tmp_path, monkeypatch, capsys
):
    """A service that started after a day removed them, and the collection was lost."""
    use("there")
    written(tmp_path / "file", {"collection": COLLECTION}, ITEM)
    assert restore.main([str(tmp_path / "file")]) == 0
    late, put, hours = timedelta(), Registry.put, iter((23, 25, 49))
    monkeypatch.setattr("services.retrieval.registry.time", lambda: time() + late.total_seconds())

    def put_late(registry: Registry, staged: Sequence[Staged]) -> None:
        nonlocal late
        late += timedelta(hours=next(hours))
        with backup.opened():  # a service starts
            put(registry, staged)

    monkeypatch.setattr(Registry, "put", put_late)
    for code in (0, 1, 1):
        assert restore.main([str(tmp_path / "file")]) == code
        assert ("has taken more than a day" in capsys.readouterr().err) == bool(code)
        with backup.opened() as index:
            assert [item.id for item in index.of_any_model("pets").stored()] == ["cat"]


def test_graphs_that_a_collection_adopts_during_a_restore_are_not_mixed_with_others(
    use, tmp_path, monkeypatch, capsys
):
    file = str(tmp_path / "file")
    use("a")
    with backup.opened() as index:
        graphs = index.of_model(MODEL + "a" * 64, D)
        graphs.add("pets", "float32", [Item("restored", vector(1), {})], Settings())
    assert backup.main([file]) == 0
    use("b")
    put = Registry.put
    with backup.opened() as service:
        service.of_model(MODEL, D).add("pets", "float32", [Item("old", vector(1), {})], Settings())
        graphs = service.of_model(MODEL + "b" * 64, D)

        def later(registry: Registry, staged: Sequence[Staged]) -> None:
            graphs.add("pets", "float32", [Item("new", vector(2), {})], Settings())
            put(registry, staged)

        monkeypatch.setattr(Registry, "put", later)
        assert restore.main([file]) == 1
        assert "their vectors cannot be compared" in capsys.readouterr().err
        assert graphs.get("pets").held(["old", "new", "restored"]) == {"old", "new"}


@pytest.mark.parametrize("stands_still", [False, True])
def test_a_new_collection_is_nobody_elses_until_all_are_restored(
    use, tmp_path, monkeypatch, capsys, stands_still
):
    """A collection made by another process in the last moment left a restore in part."""
    use("there")
    new = COLLECTION | {"name": "new"}
    file = tmp_path / "file"
    written(file, {"collection": COLLECTION}, ITEM)
    assert restore.main([str(file)]) == 0
    written(file, {"collection": COLLECTION}, ITEM, {"collection": new}, ITEM)
    check, checks = Registry._check, count()

    def then_made(registry: Registry, staged: Sequence[Staged], announced: str) -> None:
        check(registry, staged, announced)
        if next(checks):  # the last one
            with backup.opened() as service, monkeypatch.context() as patch:
                ours = service.of_model(MODEL, D)
                if stands_still:
                    patch.setattr("services.retrieval.registry.ANNOUNCED_S", -2)
                    ours.get_or_make("new", "float32")
                    return
                assert [one.name for one in ours.describe()] == ["pets"]
                with pytest.raises(Unavailable, match="try again"):
                    ours.get_or_make("new", "float32")

    monkeypatch.setattr(Registry, "_check", then_made)
    assert restore.main([str(file)]) == int(stands_still)
    assert ("1 of 2 collections were restored" in capsys.readouterr().err) == stands_still


def test_a_restore_that_was_refused_leaves_no_name_reserved(use, tmp_path, monkeypatch):
    use("there")
    written(tmp_path / "file", {"collection": COLLECTION}, ITEM)

    def fails(*_: object) -> None:
        raise Unavailable("the index failed")

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "_check", fails)
        assert restore.main([str(tmp_path / "file")]) == 1
    with backup.opened() as index:
        index.of_model(MODEL, D).get_or_make("pets", "float32")


def test_no_version_of_a_restored_collection_has_a_part_of_it(use, tmp_path):
    use("there")
    fill()
    file = str(tmp_path / "file")
    assert backup.main([file]) == 0
    assert restore.main([file]) == 0
    with backup.opened() as index:
        whole = len(index.of_any_model("pets"))
        for version in range(1, 9):
            with suppress(InvalidRequest):
                assert backup.write(index, io.BytesIO(), {"pets": version}) == whole


def test_what_a_killed_restore_reserved_is_gone_when_the_index_is_opened(tmp_path):
    reserved = Entry("pets", "", MODEL, D, "float32", announced="0")
    Registry(tmp_path)._add([reserved, replace(reserved, name="new", announced="z")])
    rows = Registry(tmp_path)._table.search().to_list()
    assert [row["name"] for row in rows] == ["new"]  # whose restore may go on


def test_a_backup_outlives_the_cleaning_of_old_versions(use, monkeypatch):
    use("there")
    fill()
    monkeypatch.setattr(builds, "KEPT", timedelta(milliseconds=1))
    with backup.opened() as index:
        pets = index.of_model(MODEL, D).get("pets")
        with pets.snapshot() as snapshot:
            ids = [item.id for item in pets.items("", COUNT)]
            pets.delete(ids[1:])
            builds.optimize(pets.tables[0])
            assert sorted(item.id for item in pets.stored(snapshot)) == sorted(ids)
        builds.optimize(pets.tables[0])
        assert len(pets.tables[0].list_versions()) == 1


def test_items_and_collections_may_be_deleted_during_a_backup(use):
    use("a")
    fill()
    with backup.opened() as index, backup.opened() as other:
        lines = backup._lines(index)
        found = [next(lines) for _ in range(2)]
        other.drop("old")
        found += [next(lines) for _ in range(10)]
        pets = other.of_any_model("pets")
        pets.delete([item.id for item in pets.items("", COUNT) if not item.id.endswith("9")])
        assert tables.is_held(pets.tables[0])  # no cleaning removes what is read
        found += lines
        assert not tables.is_held(pets.tables[0])
    names = [line["collection"]["name"] for line in found if "collection" in line]
    assert names == ["acme@pets", "old", "pets"]
    assert sum("id" in line for line in found) == COUNT + 3  # as they were when it came to them


def test_what_is_no_file_is_not_replaced(use, tmp_path, capsys):
    """`samclip backup /dev/null` as root must not replace the device."""
    use("a")
    os.mkfifo(tmp_path / "pipe")
    assert backup.main([str(tmp_path / "pipe")]) == 1
    assert "not a regular file" in capsys.readouterr().err
    assert (tmp_path / "pipe").is_fifo()


def test_concepts_are_in_the_backup_and_survive_the_service(use, tmp_path):
    limits = Settings()

    def of(tenant: str) -> Concepts:
        return Concepts(index, tenant, "0" * 64, 3, 2)

    use("a")
    made = {
        (tenant, name): Concept(
            name, count, "0" * 64, np.float32([1, 0, 0]), np.float32([0.6, -0.8])
        )
        for count, tenant in enumerate(("", "acme", "other"), start=1)
        for name in ("my mug", "a café")
    }
    with backup.opened() as index:
        for (tenant, _), concept in made.items():
            assert not of(tenant).put(concept, limits)
    run_backup(tmp_path / "backup")
    with backup.opened() as index:  # a later change, which the backup does not have
        of("acme").delete("my mug")
        assert [*of("acme").all()] == ["a café"]
        assert len(of("other").all()) == len(of("").all()) == 2
    use("b")
    assert restore.main([str(tmp_path / "backup")]) == 0
    with backup.opened() as index:
        for (tenant, name), concept in made.items():
            found = of(tenant).usable([name])[name]
            assert (found.examples, found.digest) == (concept.examples, concept.digest)
            np.testing.assert_allclose(found.clip_D, concept.clip_D, atol=1e-6)
            np.testing.assert_allclose(found.sam_E, concept.sam_E, atol=1e-6)
        assert index.of_tenant("acme").describe() == []
