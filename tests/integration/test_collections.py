"""What callers see of collections, compared with a dict and an exact search."""

import io
import os
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from shutil import rmtree
from time import time
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers import stored_objects as objects
from samclip_core.errors import InvalidRequest, NotFound, Unavailable
from services.retrieval import backup, builds, collection, query, registry, tables, upkeep
from services.retrieval.checks import check_name
from services.retrieval.collection import Collection
from services.retrieval.index import Collections, Description
from services.retrieval.query import Query
from services.retrieval.registry import Registry
from services.retrieval.rows import Item
from services.retrieval.tables import Store
from services.settings import Settings
from tests.close import assert_close
from tests.vectors import (
    HOSTILE,
    MODEL,
    OTHER,
    D,
    best_objects,
    items,
    vector,
    with_objects,
)

texts = st.sampled_from(HOSTILE) | st.text()

Start = Callable[..., Collections]


@pytest.fixture
def start(tmp_path) -> Start:
    """Return a function that opens the index for a model's digest, as another process would."""
    return lambda digest, dimension=D: Collections(Registry(tmp_path), digest, dimension)


@pytest.fixture
def collections(start: Start) -> Collections:
    return start(MODEL)


@pytest.fixture
def pets(collections: Collections) -> Collection:
    return collections.get_or_make("pets", "float32")


@pytest.fixture
def pass_hours(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that lets hours pass for the work in the background."""
    now = [0.0]
    for module in (upkeep, collection):
        monkeypatch.setattr(module, "monotonic", lambda: now[0])

    def pass_hours(hours: float) -> None:
        now[0] += 3600 * hours

    return pass_hours


def exact(held: Mapping[str, Item], query: Query) -> dict[str, float]:
    """Return id → cosine of all items that a search may find, best first."""
    cosines = {
        id: float(item.vector_D @ query.vector_D)
        for id, item in held.items()
        if id != query.exclude and (query.filter or {}).items() <= item.metadata.items()
    }
    return dict(sorted(cosines.items(), key=lambda pair: -pair[1]))


def check(found: Collection, held: Mapping[str, Item], query: Query) -> None:
    """Compare a search with the exact one; items of equal score may be in any order."""
    expected = exact(held, query)
    hits = found.search(query)
    scores = [*expected.values()][query.offset : query.offset + query.top_k]
    assert [hit.score for hit in hits] == pytest.approx(scores, abs=1e-5)
    assert len({hit.id for hit in hits}) == len(hits)
    for hit in hits:
        assert hit.score == pytest.approx(expected[hit.id], abs=1e-5)
        assert hit.metadata == held[hit.id].metadata


def check_objects(found: Collection, held: Mapping[str, Item], query: Query) -> None:
    """Compare a search for objects with the exact one."""
    expected = best_objects(held.values(), query)
    if not any(item.objects for item in held.values()):
        assert found.count_objects() == 0
        with pytest.raises(InvalidRequest, match="'pets' has no objects: index its images with"):
            found.search_objects(query)
        return
    hits = found.search_objects(query)
    scores = [*expected.values()][query.offset : query.offset + query.top_k]
    assert [hit.score for hit, _ in hits] == pytest.approx(scores, abs=2e-3)
    assert len({hit.id for hit, _ in hits}) == len(hits)
    for hit, best in hits:
        assert hit.metadata == held[hit.id].metadata
        stored = objects.Objects(held[hit.id].objects, D)
        assert best == stored[int((stored.vector_RD @ query.vector_D).argmax())]


def test_the_length_of_a_query_does_not_matter(pets):
    pets.upsert(items(1, 2))
    for filter in (None, {"seed": "1"}):
        hit = pets.search(Query(3 * vector(1), 1, filter=filter))[0]
        assert hit.score == pytest.approx(1, abs=1e-5)


def test_a_collection_that_is_empty_or_emptied_can_be_searched(collections, pets):
    def found() -> int:
        return sum(len(pets.search(Query(vector(0), 5, filter=pairs))) for pairs in ({}, {"a": ""}))

    assert found() == 0
    pets.upsert(items(1))
    assert found() == 1
    assert pets.delete(["id 1", "id 1", "nobody"]) == 1
    assert found() == 0
    assert collections.describe("pets") == [Description("pets", 0, D, MODEL, "float32")]
    with pytest.raises(NotFound, match="no item 'id 1' in collection 'pets'"):
        pets.vector("id 1")


ids = st.sampled_from(
    [f"id {n}" for n in range(6)] + [text[: tables.MAX_ID] for text in HOSTILE if text]
)
metadata = st.dictionaries(texts, texts, max_size=3)
seeds = st.integers(0, 30)
steps = st.one_of(
    st.tuples(
        st.just("upsert"),
        st.lists(st.tuples(ids, seeds, metadata, st.integers(0, 3)), min_size=1, max_size=5),
    ),
    st.tuples(st.just("delete"), st.lists(ids, min_size=1, max_size=3)),
)


@settings(
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(steps, max_size=6), seed=seeds, excluded=ids, offset=st.integers(0, 3))
@example(  # a filter for an empty value finds no item without the key
    steps=[("upsert", [("id 0", 0, {" ": ""}, 0), ("id 1", 0, {"": ""}, 1)])],
    seed=0,
    excluded="id 5",
    offset=0,
)
def test_it_holds_what_a_dict_would(pets, steps, seed, excluded, offset):
    """All examples use the same collection, which each of them empties."""
    held = dict[str, Item]()
    pets.upsert(items(0))
    pets.delete([item.id for item in pets.items("", 99)])
    for step, arguments in steps:
        if step == "upsert":
            new = {
                id: replace(with_objects(number, id, count), metadata=pairs)
                for id, number, pairs, count in arguments
            }
            of_these = [one.objects for id, one in held.items() if id in new]
            assert pets.count_objects(new.keys()) == sum(map(objects.count, of_these))
            assert pets.holds(new.keys()) == len(new.keys() & held.keys())
            assert pets.upsert([*new.values()]) == len(new.keys() & held.keys())
            held |= new
        else:
            gone = {id for id in arguments if held.pop(id, None)}
            assert pets.delete(arguments) == len(gone)
    assert len(pets) == len(held)
    listed: list[pb.ListedItem] = []
    while page := pets.items(listed[-1].id if listed else "", 2):
        listed += page
    assert [item.id for item in listed] == sorted(held, key=str.encode)
    assert all(item.metadata == held[item.id].metadata for item in listed)
    assert all(item.objects == objects.count(held[item.id].objects) for item in listed)
    assert pets.listed([item.id for item in listed]) == listed
    check(pets, held, Query(vector(seed), 4, offset))
    check(pets, held, Query(vector(seed), 99, exclude=excluded))
    assert pets.count_objects() == sum(objects.count(item.objects) for item in held.values())
    check_objects(pets, held, Query(vector(seed), 4, offset, exclude=excluded))
    assert {item.id: item.objects for item in pets.stored()} == {
        id: item.objects for id, item in held.items()
    }
    for item in held.values():
        np.testing.assert_allclose(pets.vector(item.id), item.vector_D, atol=1e-6)
        check(pets, held, Query(vector(seed), 99, filter=item.metadata))
        check_objects(pets, held, Query(vector(seed), 99, filter=item.metadata))
        for pair in item.metadata.items():
            check(pets, held, Query(vector(seed), 99, filter=dict([pair]), exclude=excluded))
            check(pets, held, Query(vector(seed), 99, filter=dict([pair[::-1]])))


def test_no_image_hides_another_one_of_its_request(pets, monkeypatch):
    """Random numbers of theirs were the same once in a while."""
    monkeypatch.setattr("services.retrieval.collection.secrets.randbits", lambda bits: 1)
    monkeypatch.setattr("services.retrieval.collection.time_ns", lambda: 0)
    pets.upsert([with_objects(seed) for seed in (1, 2, 3)])
    pets.delete(["id 3"])
    query = Query(vector(1), 9)
    for hits in (pets.search(query), [hit for hit, _ in pets.search_objects(query)]):
        assert {hit.id for hit in hits} == {"id 1", "id 2"}


def test_a_filter_asks_for_equal_texts_and_nothing_else(pets):
    for text in HOSTILE:
        pets.upsert(
            [
                Item("value", vector(1), {"key": text}),
                Item("key", vector(2), {text: "value"}),
                Item("inside", vector(3), {f"-{text}-": f"-{text}-", f'"{text}': f'{text}"'}),
            ]
        )
        filters = {"key": text}, {text: "value"}, {text: text}
        hits = [pets.search(Query(vector(1), 9, filter=filter)) for filter in filters]
        assert [[hit.id for hit in each] for each in hits] == [["value"], ["key"], []]


def test_hits_below_the_least_score_are_left_out(pets):
    pets.upsert(items(*range(30)))
    scores = [hit.score for hit in pets.search(Query(vector(1), 30))]
    assert scores[9] > scores[10]
    least = (scores[9] + scores[10]) / 2
    found = pets.search(Query(vector(1), 30, min_score=least))
    assert [hit.score for hit in found] == pytest.approx(scores[:10], abs=1e-5)
    assert pets.search(Query(vector(1), 5, 10, min_score=least)) == []


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=12),
    top_k=st.integers(1, 15),
    offset=st.integers(0, 5),
    min_score=st.sampled_from([0, 0.3, 0.9]),
    seed=st.integers(0, 9),
)
def test_each_image_is_found_by_its_best_object(pets, counts, top_k, offset, min_score, seed):
    pets.delete([item.id for item in pets.items("", 99)])
    held = {f"id {n}": with_objects(seed + n, f"id {n}", count) for n, count in enumerate(counts)}
    pets.upsert([*held.values()])
    query = Query(vector(seed), top_k, offset, exclude="id 1", min_score=min_score)
    every = best_objects(held.values(), Query(vector(seed), 99)).values()
    assume(all(abs(score - min_score) > 2e-3 for score in every))  # they are rounded
    check_objects(pets, held, query)


def built(collections: Collections) -> None:
    while work := collections.registry.due():
        work()


@pytest.fixture
def small(monkeypatch):
    """The first search for a page is narrow, and an index is worthwhile for few rows."""
    monkeypatch.setattr(collection, "WIDTH", 4)
    monkeypatch.setattr(collection, "OBJECT_WIDTH", 8)
    monkeypatch.setattr("services.retrieval.query.EXACT", 30)
    monkeypatch.setattr(builds, "INDEXED", 300)
    monkeypatch.setattr(builds, "TRIED", ((3, 64), (3, 512)))


@pytest.mark.parametrize("filter", [None, {"kind": "even"}])
def test_pages_of_objects_make_up_the_whole_ranking(pets, small, filter):
    made = [
        replace(with_objects(n // 2, f"id {n}"), metadata={"kind": ("even", "odd")[n % 2]})
        for n in range(40)  # with ties
    ]
    pets.upsert([*made, *items(98, 99)])
    whole = pets.search_objects(Query(vector(5), 90, filter=filter))
    pages = [pets.search_objects(Query(vector(5), 6, n, filter)) for n in range(0, 50, 6)]
    assert_close([hit for page in pages for hit in page], whole)
    assert len(whole) == (40 if filter is None else 20)


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("filter", [None, {"kind": "even"}])
def test_pages_make_up_the_whole_ranking(collections, pets, small, indexed, filter):
    """Also where it begins with what an index finds, and not all items."""
    count, kinds = 600 if indexed else 90, ("even", "odd")
    pets.upsert(  # with ties
        [Item(f"id {n}", vector(n // 3), {"kind": kinds[n % 2]}) for n in range(count)]
    )
    built(collections)
    whole = pets.search(Query(vector(5), count, filter=filter))
    pages = [pets.search(Query(vector(5), 7, n, filter)) for n in range(0, count + 7, 7)]
    hits = [hit for page in pages for hit in page]
    if indexed:  # what an index has missed follows later, so that only pages are in order
        assert sorted(hit.id for hit in hits) == sorted(hit.id for hit in whole)
    else:
        assert_close(hits, whole)
    assert len({hit.id for hit in hits}) == (count if filter is None else count / 2)


def test_an_image_that_is_replaced_during_a_search_is_found_once(pets, small, monkeypatch):
    """Later rows of the ranking are those of a second search, which found its new version too."""
    made, nearest = items(*range(12)), query.nearest
    pets.upsert(made)

    def replaced(*given: object) -> object:
        pets.upsert(made)
        return nearest(*given)

    monkeypatch.setattr(query, "nearest", replaced)
    ids = [hit.id for hit in pets.search(Query(vector(1), 12))]
    assert sorted(ids) == sorted(item.id for item in made)


def test_a_search_ends_where_an_index_finds_nothing(collections, pets, small, monkeypatch):
    """Its partitions may have none of the rows with a filter's pairs."""
    pets.upsert(items(*range(320)))
    built(collections)
    nearest = query.nearest

    def none_by_index(*given: Any) -> Any:
        found = nearest(*given)
        return found.slice(0, 0) if given[-1] else found

    calls = iter([none_by_index] * 9)
    monkeypatch.setattr(query, "nearest", lambda *given: next(calls)(*given))
    assert len(pets.search(Query(vector(1), top_k=320))) == 320


def test_large_collections_are_searched_by_an_index(collections, pets, small):
    pets.upsert(items(*range(400)))
    pets.delete(["id 7"])
    built(collections)
    assert [name for name in map(str, pets._items.list_indices()) if "vector_64_399" in name]
    pets.upsert(items(*range(400, 420)))
    nearest = [pets.search(Query(vector(seed), 1))[0].id for seed in range(420)]
    right = sum(id == f"id {seed}" for seed, id in enumerate(nearest))
    assert nearest[7] != "id 7"
    assert right >= 415


def test_an_index_of_objects_that_finds_all_is_used(collections, pets, small):
    """Their vectors are float16, whose scores are rounded."""
    pets.upsert([with_objects(n) for n in range(150)])
    built(collections)
    assert tables.refinement(pets.tables[1])


def test_an_index_that_finds_too_little_is_not_used(collections, pets, small, monkeypatch, caplog):
    monkeypatch.setattr(builds, "recall", lambda *_: 0.5)
    pets.upsert(items(*range(400)))
    built(collections)
    assert "finds only 50.0 % of the best" in caplog.text
    for seed in range(0, 400, 9):
        assert pets.search(Query(vector(seed), 1))[0].id == f"id {seed}"


def test_the_second_try_of_an_index_is_kept(collections, pets, small, monkeypatch):
    found = iter((0.5, 1))
    monkeypatch.setattr(builds, "TRIED", ((1, 64), (3, 64)))
    monkeypatch.setattr(builds, "recall", lambda *_: next(found))
    pets.upsert(items(*range(400)))
    built(collections)
    assert "vector_64_400" in [index.name for index in pets.tables[0].list_indices()]


def test_many_small_commits_are_joined(collections, pets, monkeypatch):
    monkeypatch.setattr(builds, "FRAGMENTS", 10)
    monkeypatch.setattr(builds, "PRUNED", 2)
    monkeypatch.setattr(builds, "KEPT", timedelta(milliseconds=1))
    for seed in range(25):
        pets.upsert([with_objects(seed % 20)])
        if seed % 5 == 0:
            pets.delete(["id 3"])
        built(collections)
    for table in pets.tables:
        assert table.stats()["fragment_stats"]["num_fragments"] < 10
        assert len(table.list_versions()) < table.version
    check(pets, {item.id: item for item in items(*range(20))}, Query(vector(1), 30))


def test_a_collection_whose_table_is_lost_stands_in_no_others_way(start, tmp_path, caplog):
    """It can be deleted, as the runbook says, and the others described and backed up."""
    every = start(MODEL)
    for tenant, name in (("ann", "pets"), ("ann", "dogs"), ("bob", "cars")):
        every.of_tenant(tenant).add(name, "float32", items(1), Settings())
    rmtree(tmp_path / f"{every.registry.find('ann@pets').entry.table}.lance")
    ann = start(MODEL).of_tenant("ann")
    assert [one.name for one in ann.describe()] == ["dogs"]
    assert "collection 'pets' cannot be read" in caplog.text
    with pytest.raises(Unavailable, match="collection 'pets' cannot be read"):
        ann.describe("pets")
    assert backup.write(start(MODEL), io.BytesIO(), {"bob@cars": None}) == 1
    with pytest.raises(Unavailable, match="collection 'ann@pets' cannot be read"):
        backup.write(start(MODEL), io.BytesIO())
    assert ann.drop("pets") == 0
    assert backup.write(start(MODEL), io.BytesIO()) == 2
    rmtree(tmp_path / f"{every.registry.find('ann@dogs').entry.table}.lance")
    with pytest.raises(Unavailable, match="collection 'dogs' cannot be read"):
        start(MODEL).of_tenant("ann").describe()


def test_old_versions_go_from_a_collection_that_rests(collections, pets, pass_hours, monkeypatch):
    """A million vectors that were added in some minutes took six times their size for ever."""
    pass_hours(1)
    pets.upsert(items(1))
    built(collections)
    monkeypatch.setattr(builds, "KEPT", timedelta(milliseconds=1))
    for later in range(1, 4):
        pass_hours(1)
        built(collections)
        assert len(pets.tables[0].list_versions()) == 1
        if later == 1:
            version = pets.version
    assert pets.version == version  # nothing is left to do


def test_a_collection_whose_works_have_no_effect_rests_for_an_hour(
    collections, pets, pass_hours, monkeypatch
):
    works = []
    monkeypatch.setattr(builds, "due", lambda table, *_: partial(works.append, table.name))
    pets.upsert(items(1))
    built(collections)
    tried = len(works)
    assert 1 < tried < 20
    built(collections)
    assert len(works) == tried
    pass_hours(1.1)
    built(collections)
    assert tried < len(works) <= 2 * tried


def test_collections_that_are_opened_in_turns_are_not_swept_each_time(
    collections, pass_hours, monkeypatch
):
    """With more in use than are kept open, each read optimised its collection again."""
    monkeypatch.setattr(registry, "MOST_OPEN", 2)
    swept, sweep = [], Collection.sweep
    monkeypatch.setattr(Collection, "sweep", lambda found: (swept.append(found.name), sweep(found)))
    pass_hours(1)
    for _ in range(3):
        for name in "abcd":
            collections.get_or_make(name, "float32")
            built(collections)
    assert sorted(swept) == [*"abcd"]


def test_a_search_for_leftovers_that_fails_is_logged_and_tried_again(
    collections, pets, pass_hours, monkeypatch, caplog
):
    calls, sweep = [], Collection.sweep

    def fails_once(found: Collection) -> None:
        calls.append(found.name)
        if len(calls) == 1:
            raise Unavailable("the disk is full")
        sweep(found)

    monkeypatch.setattr(Collection, "sweep", fails_once)
    pets.upsert([with_objects(1)])
    built(collections)
    assert "the disk is full" in caplog.text
    pass_hours(1.1)
    built(collections)
    assert len(calls) == 2


def test_old_versions_that_a_backup_held_go_an_hour_later(
    collections, pets, pass_hours, monkeypatch
):
    pass_hours(1)
    pets.upsert(items(1))
    built(collections)
    monkeypatch.setattr(builds, "KEPT", timedelta(milliseconds=1))
    pass_hours(1)
    with pets.snapshot():
        built(collections)
        assert len(pets.tables[0].list_versions()) > 1
    pass_hours(1)
    built(collections)
    assert len(pets.tables[0].list_versions()) == 1


def test_a_join_writes_small_files_alone_and_keeps_what_changes_meanwhile(
    start, pets, tmp_path, monkeypatch
):
    """Of 3,000 items, only those of the small files are written again."""
    monkeypatch.setattr(builds, "FRAGMENTS", 10)
    pets.upsert([Item(f"id {n:04}", vector(n), {"seed": "x" * 100}) for n in range(3000)])
    for seed in range(12):
        pets.upsert([with_objects(seed)])
    (table, _), theirs = pets.tables, start(MODEL).get("pets")
    work = builds.due(table)

    def changed(*columns: object) -> object:
        theirs.upsert([with_objects(99, "id 4")])
        theirs.delete(["id 5"])
        return merge(*columns)

    merge = table.merge_insert
    monkeypatch.setattr(table, "merge_insert", changed)
    before = {file: file.stat().st_size for file in (tmp_path).glob(f"{table.name}.lance/data/*")}
    work()
    files = {file: file.stat().st_size for file in (tmp_path).glob(f"{table.name}.lance/data/*")}
    assert sum(files.values()) < 1.5 * sum(before.values())
    assert table.stats()["fragment_stats"]["num_fragments"] < 6
    seeds = {item.id: item.metadata["seed"] for item in pets.items("id ", 9999)}
    small = {id: seed for id, seed in seeds.items() if len(id) < 6}
    assert small == {f"id {n}": str(99 if n == 4 else n) for n in range(12) if n != 5}
    assert len(pets) == len(seeds) == 3011


def test_a_new_start_finds_everything(start):
    collections = start(MODEL)
    for name, made in (
        ("pets", [with_objects(3)]),
        ("pets", [*items(1), with_objects(2)]),
        ("a.b", items(3)),
    ):
        if name in [found.name for found in collections.describe()]:
            assert collections.drop(name) == 1  # and can be made anew
            assert collections.describe() == []
        collections.get_or_make(name, "float32").upsert(made)
    again = start(MODEL)
    two = [
        Description("a.b", 1, D, MODEL, "float32"),
        Description("pets", 2, D, MODEL, "float32", 3),
    ]
    assert again.describe() == two
    assert again.describe("pets") == two[1:]
    found = again.get("pets")
    check(found, {item.id: item for item in items(1, 2)}, Query(vector(1), 9))
    check_objects(found, {"id 2": with_objects(2)}, Query(vector(1), 9))
    assert len(found) == len(found.items("", 9)) == 2


@pytest.fixture
def of_long_ago(start: Start, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make three collections that are older than what a crash leaves; return their names."""
    with monkeypatch.context() as patch:
        patch.setattr(registry, "time", lambda: time() - 3 * registry.ABANDONED_S)
        made = start(MODEL)
        for name in "abc":
            made.get_or_make(name, "float32").upsert(items(1))
    return [one.name for one in made.describe()]


def test_an_index_of_an_older_version_is_opened_and_changed(start):
    older = start(MODEL)
    older.get_or_make("pets", "float32").upsert(items(1))
    older.registry._table.drop_columns(["announced"])
    again = start(MODEL)
    again.get("pets").upsert(items(2))
    assert again.drop("pets") == 2


def files_of(place: Path) -> set[Path]:
    return {path for path in place.rglob("*") if path.is_file()}


def test_a_lost_file_is_an_error_that_deletes_nothing(start, of_long_ago, tmp_path):
    """Every version was set aside in turn, and all tables dropped, as none had an entry."""
    lost = min(
        (tmp_path / "collections.lance/data").iterdir(), key=lambda path: path.stat().st_mtime
    )
    content = lost.read_bytes()
    lost.unlink()
    before = files_of(tmp_path)
    with pytest.raises(Unavailable, match="check the disk"):
        start(MODEL)
    assert files_of(tmp_path) >= before
    lost.write_bytes(content)
    assert [one.name for one in start(MODEL).describe()] == of_long_ago


def test_an_index_without_its_entries_is_an_error_that_deletes_nothing(
    start, of_long_ago, tmp_path
):
    (tmp_path / "collections.lance").rename(tmp_path / "elsewhere")
    before = files_of(tmp_path)
    with pytest.raises(Unavailable, match="no table 'collections'"):
        start(MODEL)
    assert files_of(tmp_path) == before
    (tmp_path / "elsewhere").rename(tmp_path / "collections.lance")
    assert [one.name for one in start(MODEL).describe()] == of_long_ago


def cut_newest(table: Path) -> None:
    """Cut off the newest file of a table's rows, as a loss of power may do."""
    newest = max((table / "data").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:100])


def test_two_that_mend_an_index_at_once_undo_one_change(start, of_long_ago, tmp_path):
    """The later one set aside the version before as well, which was whole."""

    class Later(Store):
        def _opened(self, name: str, version: int | None) -> Any:
            try:
                return super()._opened(name, version)
            except RuntimeError:
                start(MODEL)  # the other one, meanwhile
                raise

    cut_newest(tmp_path / "collections.lance")
    assert Later(tmp_path).open("collections").count_rows() == len(of_long_ago) - 1
    assert [one.name for one in start(MODEL).describe()] == of_long_ago[:2]


def test_what_cannot_be_read_for_a_moment_is_not_set_aside(start, of_long_ago, tmp_path):
    class Busy(Store):
        def _opened(self, name: str, version: int | None) -> Any:
            raise RuntimeError("LanceError(IO): Too many open files (os error 24)")

    cut_newest(tmp_path / "collections.lance")
    start(MODEL).get_or_make("d", "float32")  # the cut file is of no version any more
    before = files_of(tmp_path)
    with pytest.raises(RuntimeError, match="Too many"):
        Busy(tmp_path).open("collections")
    assert files_of(tmp_path) == before


def test_the_change_that_a_loss_of_power_cut_off_is_undone(start, of_long_ago, tmp_path, caplog):
    newest = min((tmp_path / "collections.lance/_versions").glob("*.manifest"))
    newest.write_bytes(newest.read_bytes()[:-9])
    before = files_of(tmp_path)
    found = start(MODEL)
    assert "so that the one before is used" in caplog.text
    for name in of_long_ago[:2]:
        assert len(found.get(name)) == 1
    left = {path for path in before if "collections.lance" not in path.parts}
    assert files_of(tmp_path) >= left  # the table of the third one as well


def test_a_tenant_has_collections_of_its_own(start):
    everybody = start(MODEL)
    ann, bob = everybody.of_tenant("ann"), everybody.of_tenant("bob")
    for tenant, number in ((ann, 1), (bob, 2), (everybody.of_tenant(""), 3)):
        tenant.get_or_make("pets", "float32").upsert(items(number))
    ann.get_or_make("hers", "float32").upsert(items(4))
    assert [found.name for found in everybody.describe()] == [
        "ann@hers",
        "ann@pets",
        "bob@pets",
        "pets",
    ]
    assert [found.name for found in bob.describe()] == ["pets"]
    assert [hit.id for hit in bob.get("pets").search(Query(vector(1), 9))] == ["id 2"]
    with pytest.raises(NotFound, match="no collection 'hers'"):
        bob.drop("hers")
    assert bob.drop("pets") == 1
    assert len(ann) == 2


def test_an_unknown_one_is_not_found(collections):
    for ask in (collections.get, collections.of_any_model, collections.describe, collections.drop):
        with pytest.raises(NotFound, match="no collection 'pets': index images"):
            ask("pets")


@pytest.mark.parametrize("name", ["", "../pets", "a/b", ".hidden", "-x", "a" * 65, "é", "a\n"])
def test_names_are_those_of_files(name):
    with pytest.raises(InvalidRequest, match="expected a name of 1 to 64"):
        check_name(name)


def test_a_collection_of_another_model_is_refused_but_can_be_listed_and_dropped(start):
    start(MODEL).get_or_make("pets", "float32").upsert(items(1))
    other = start(OTHER, D + 1)
    add = partial(other.get_or_make, dtype="float32")
    addable = partial(other.check_addable, ids=set(), settings=Settings())
    for ask in (other.get, add, addable):
        with pytest.raises(InvalidRequest, match="made with model mmmmmmmmmmmm"):
            ask("pets")
    assert other.describe("pets") == [Description("pets", 1, D, MODEL, "float32")]
    assert [item.id for item in other.of_any_model("pets").items("", 9)] == ["id 1"]
    assert other.drop("pets") == 1
    other.get_or_make("pets", "float32").upsert([Item("x", vector(1).repeat(2)[: D + 1], {})])
    assert other.describe("pets")[0].dimension == D + 1


def test_vectors_of_another_precision_are_refused_but_those_that_are_there_are_searched(start):
    start(MODEL).get_or_make("pets", "int8").upsert(items(1, 2))
    again = start(MODEL)
    expected = (
        r"computed in int8, but this service computes in float32, .* SAMCLIP_DTYPE to int8, or .*"
    )
    with pytest.raises(InvalidRequest, match=expected + r"samclip reindex"):
        again.get_or_make("pets", "float32")
    assert again.get("pets").search(Query(vector(1), 1))[0].id == "id 1"
    assert again.describe("pets") == [Description("pets", 2, D, MODEL, "int8")]
    assert again.get_or_make("pets", "int8").upsert(items(2, 3)) == 1
    again.get_or_make("calibrated", "int8:4caf4841").upsert(items(1))
    expected = r"in int8:4caf4841, but this service computes in int8:0123, .* precisions: index the"
    with pytest.raises(InvalidRequest, match=expected):
        again.get_or_make("calibrated", "int8:0123")


def test_a_collection_of_an_unknown_precision_is_searched_and_takes_no_known_one(collections):
    collections.add("pets", "", items(1), Settings())  # as given vectors may have
    assert collections.describe() == [Description("pets", 1, D, MODEL, "")]
    assert [hit.id for hit in collections.get("pets").search(Query(vector(1), 9))] == ["id 1"]
    expected = (
        "'pets' has vectors computed in an unknown precision, but this service computes in float32,"
        " and a collection cannot mix precisions: index the images again under another name"
    )
    with pytest.raises(InvalidRequest, match=expected):
        collections.add("pets", "float32", items(2), Settings())
    collections.add("pets", "", items(2), Settings())
    assert collections.drop("pets") == 2


def limits(items: int, collections: int) -> Settings:
    return Settings(max_collection_items=items, max_collections=collections)


def test_objects_are_limited(collections):
    most = Settings(max_collection_objects=6)
    collections.add("pets", "float32", [with_objects(1), with_objects(2)], most)
    collections.add("pets", "float32", [*items(3), with_objects(2)], most)  # none is more
    with pytest.raises(InvalidRequest, match="'pets' has 3 objects in other items, and 4 more"):
        collections.add("pets", "float32", [with_objects(2, count=4)], most)
    with pytest.raises(InvalidRequest, match="'cars' has 0 objects in other items, and 7 more"):
        collections.check_addable("cars", {"a"}, most, 7)
    assert collections.get("pets").delete(["id 1", "id 1"]) == 1
    collections.add("pets", "float32", [with_objects(4, count=1)], most)
    assert collections.describe() == [Description("pets", 3, D, MODEL, "float32", 4)]


def test_collections_and_their_items_are_limited(collections):
    collections.get_or_make("pets", "float32").upsert(items(1, 2))
    collections.check_addable("pets", {"id 3"}, limits(3, 1))
    collections.check_addable("pets", {"id 1", "id 2"}, limits(2, 1))
    collections.check_addable("cars", {"id 1"}, limits(3, 2))
    assert len(collections) == 1
    with pytest.raises(InvalidRequest, match="'pets' has 2 items, and 1 more would exceed"):
        collections.check_addable("pets", {"id 2", "id 3"}, limits(2, 9))
    with pytest.raises(InvalidRequest, match="'cars' has 0 items, and 2 more would exceed"):
        collections.check_addable("cars", {"id 1", "id 2"}, limits(1, 9))
    with pytest.raises(InvalidRequest, match="1 collections already"):
        collections.check_addable("cars", {"id 1"}, limits(9, 1))
    # Each tenant has its own limits.
    collections.of_tenant("ann").check_addable("cars", {"id 1"}, limits(9, 1))


def test_the_first_graphs_whose_vectors_are_added_are_recorded(start):
    ours, others = MODEL + "1" * 64, MODEL + "2" * 64
    bad = [Item("bad", vector(1), {"x": object()})]
    start(MODEL).add("pets", "float32", items(1), Settings())  # torch has no graphs
    for name in ("pets", "new"):
        with pytest.raises(TypeError):
            start(others).add(name, "float32", bad, Settings())
        assert start(others).add(name, "float32", [], Settings()) == 0
        start(ours).add(name, "float32", items(2), Settings())
    refused = start(others)
    for ask in (refused.get, partial(refused.get_or_make, dtype="float32")):
        with pytest.raises(InvalidRequest, match="with graphs 111111111111, this service runs"):
            ask("pets")
    assert refused.describe("pets") == [Description("pets", 2, D, ours, "float32")]
    for agreeing in (ours, MODEL):
        assert start(agreeing).add("pets", "float32", items(1), Settings()) == 1
    assert start(MODEL).describe("new")[0].digest == ours


def test_other_users_may_read_no_file_of_it(start, tmp_path):
    before = os.umask(0)
    try:
        pets = start(MODEL).get_or_make("pets", "float32")
        pets.upsert([with_objects(1)])
        pets.delete(["id 1"])
    finally:
        os.umask(before)
    paths = [tmp_path, *tmp_path.rglob("*")]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_file()}
    assert (modes, stat.S_IMODE(tmp_path.stat().st_mode)) == ({0o600}, 0o700)


def test_collections_that_are_not_in_use_are_closed_and_opened_again(collections, monkeypatch):
    monkeypatch.setattr(registry, "MOST_OPEN", 3)
    for _ in range(2):
        for number in range(7):
            found = collections.get_or_make(f"pets-{number}", "float32")
            found.upsert(items(number, 10 + number))
    assert [described.count for described in collections.describe()] == [2] * 7
    for number in range(7):
        found = collections.get(f"pets-{number}").search(Query(vector(number), 1))
        assert [hit.id for hit in found] == [f"id {number}"]


def test_many_keys_and_ids_are_stored_and_deleted(pets):
    pairs = {f"key {n}": f"value '{n}'" for n in range(10_000)}
    pets.upsert([Item("many", vector(1), pairs), *items(*range(300))])
    (hit,) = pets.search(Query(vector(1), 9, filter={"key 9999": "value '9999'"}))
    assert (hit.id, dict(hit.metadata)) == ("many", pairs)
    assert pets.delete([f"id {n}" for n in range(10_000)]) == 300
    assert pets.holds({f"id {n}" for n in range(10_000)} | {"many"}) == 1


def test_an_id_that_none_can_have_is_not_looked_for(pets):
    """Texts of any length were conditions: 32 MB of quotation marks took seconds and a gigabyte."""
    long, longest = "'" * 2**20, "a" * tables.MAX_ID
    pets.upsert(
        [replace(item, id=id) for item, id in zip(items(1, 2, 3), ["a", longest, "b"], strict=True)]
    )
    assert [item.id for item in pets.items(longest + long, 9)] == ["b"]
    assert [item.id for item in pets.items(longest[:-1] + long, 9)] == [longest, "b"]
    assert len(tables.one_of([long, "a", long])) < 20
    assert pets.held([long, "a"]) == {"a"}
    assert pets.delete([long]) == 0


def test_a_vector_of_another_length_changes_nothing(pets):
    pets.upsert(items(1))
    with pytest.raises(ValueError, match="expected vectors of 8 numbers"):
        pets.upsert([*items(2), Item("short", vector(1)[:3], {})])
    assert [item.id for item in pets.items("", 9)] == ["id 1"]


def test_a_collection_that_another_process_deletes_is_unavailable_and_then_not_found(start):
    ours, theirs = start(MODEL), start(MODEL)
    pets = ours.get_or_make("pets", "float32")
    pets.upsert([with_objects(1)])
    assert theirs.drop("pets") == 1
    for ask in (
        partial(pets.search, Query(vector(1), 9)),
        partial(pets.upsert, items(2)),
        partial(pets.delete, ["id 1"]),
    ):
        with pytest.raises(Unavailable):
            ask()
    with pytest.raises(NotFound):
        ours.get("pets")
    built(ours)  # which has forgotten it
    theirs.get_or_make("pets", "int8").upsert(items(3))
    assert [hit.id for hit in ours.get("pets").search(Query(vector(3), 9))] == ["id 3"]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    mounted = tmp_path / "disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(mounted)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system of 3 MB")
    yield mounted
    subprocess.run(["umount", "--lazy", str(mounted)], check=True)


def test_a_full_disk_refuses_changes_and_loses_nothing(small_disk):
    def opened() -> Collections:
        return Collections(Registry(small_disk / "index"), MODEL, D)

    pets = opened().get_or_make("pets", "float32")
    pets.upsert([with_objects(1), *items(2, 3)])
    rest = small_disk / "rest"
    with suppress(OSError), rest.open("wb", buffering=0) as output:
        while True:
            output.write(bytes(4096))
    for change in (lambda: pets.upsert([with_objects(4)]), lambda: pets.delete(["id 2"])):
        with pytest.raises(Unavailable, match="free some space"):
            change()
    assert [item.id for item in opened().get("pets").items("", 9)] == ["id 1", "id 2", "id 3"]
    rest.unlink()
    pets.upsert([with_objects(4)])
    pets.delete(["id 2"])
    assert [item.id for item in pets.items("", 9)] == ["id 1", "id 3", "id 4"]
    assert {hit.id for hit, _ in pets.search_objects(Query(vector(1), 9))} == {"id 1", "id 4"}
