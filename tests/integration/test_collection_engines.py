"""Common behaviour of both index engines, each compared with an exact search."""

import string
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from samclip_core.errors import InvalidRequest, NotFound
from services.retrieval import index, vector_sets
from services.retrieval.embedded import EmbeddedCollections
from services.retrieval.index import Collections, Description, Item, check_name
from services.retrieval.query import Query
from services.retrieval.vector_sets import VectorSets
from services.settings import Settings
from tests.redis_server import RedisServer
from tests.vectors import HOSTILE, MODEL, OTHER, D, items, vector

texts = st.sampled_from(HOSTILE) | st.text()

Start = Callable[[str], Collections]


@pytest.fixture(scope="module", params=["embedded", "redis"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def start(engine: str, tmp_path, request) -> Iterator[Start]:
    """Return a function that opens the index for a model's digest and closes the previous one."""
    opened: list[Collections] = []
    if engine == "redis":
        server: RedisServer = request.getfixturevalue("shared_redis")
        url = f"redis://127.0.0.1:{server.port}/5"  # a database only for these tests
        with redis.Redis.from_url(url) as client:
            client.flushdb()

    def open_(digest: str, dimension: int = D) -> Collections:
        if opened:
            opened[-1].close()
        if engine == "redis":
            opened.append(VectorSets(vector_sets.connect(url), digest, dimension))
        else:
            opened.append(EmbeddedCollections(tmp_path, digest, dimension))
        return opened[-1]

    yield open_
    opened[-1].close()


@pytest.fixture
def collections(start: Start) -> Collections:
    return start(MODEL)


@pytest.fixture
def pets(collections: Collections) -> index.Collection:
    return collections.get_or_make("pets", "float32")


def exact(held: Mapping[str, Item], query: Query) -> dict[str, float]:
    """Return id → cosine of all items that a search may find, best first."""
    cosines = {
        id: float(item.vector_D @ query.vector_D)
        for id, item in held.items()
        if id != query.exclude and (query.filter or {}).items() <= item.metadata.items()
    }
    return dict(sorted(cosines.items(), key=lambda pair: -pair[1]))


def check(found: index.Collection, held: Mapping[str, Item], query: Query) -> None:
    """Compare a search with the exact one; items of equal score may be in any order."""
    expected = exact(held, query)
    hits = found.search(query)
    scores = [*expected.values()][query.offset : query.offset + query.top_k]
    assert [hit.score for hit in hits] == pytest.approx(scores, abs=1e-5)
    assert len({hit.id for hit in hits}) == len(hits)
    for hit in hits:
        assert hit.score == pytest.approx(expected[hit.id], abs=1e-5)
        assert hit.metadata == held[hit.id].metadata


def test_the_length_of_a_query_does_not_matter(pets):
    pets.upsert(items(1, 2))
    for filter in (None, {"seed": "1"}):
        hit = pets.search(Query(3 * vector(1), 1, filter=filter))[0]
        assert hit.score == pytest.approx(1, abs=1e-5)


def test_fewer_items_than_asked_for_and_none_at_all(pets):
    assert pets.search(Query(vector(0), 5)) == []
    assert pets.search(Query(vector(0), 5, filter={"a": "b"})) == []
    pets.upsert(items(1, 2))
    assert len(pets.search(Query(vector(0), 5))) == 2


def test_replaced_items_are_counted(pets):
    assert pets.upsert(items(1, 2)) == 0
    assert pets.upsert(items(2, 3)) == 1
    assert pets.upsert(items(1, 2, 3)) == 3


def test_deleted_items_are_gone_and_unknown_ones_do_not_count(pets):
    pets.upsert(items(1, 2, 3))
    assert pets.delete(["id 1", "id 1", "nobody"]) == 1
    assert len(pets) == 2
    assert "id 1" not in [hit.id for hit in pets.search(Query(vector(1), 9))]
    assert [item.id for item in pets.items("", 9)] == ["id 2", "id 3"]
    with pytest.raises(NotFound, match="no item 'id 1' in collection 'pets'"):
        pets.vector("id 1")


def test_a_collection_that_is_emptied_stays(collections, pets):
    pets.upsert(items(1))
    assert pets.delete(["id 1"]) == 1
    assert collections.describe("pets") == [Description("pets", 0, D, MODEL, "float32")]
    assert collections.get("pets").search(Query(vector(1), 1)) == []


ids = st.sampled_from([f"id {n}" for n in range(6)] + [text for text in HOSTILE if text])
metadata = st.dictionaries(texts, texts, max_size=3)
seeds = st.integers(0, 30)
steps = st.one_of(
    st.tuples(st.just("upsert"), st.lists(st.tuples(ids, seeds, metadata), min_size=1, max_size=5)),
    st.tuples(st.just("delete"), st.lists(ids, min_size=1, max_size=3)),
)


@settings(max_examples=30)
@given(steps=st.lists(steps, max_size=6), seed=seeds, excluded=ids, offset=st.integers(0, 3))
def test_it_holds_what_a_dict_would(engine_of_many, steps, seed, excluded, offset):
    found, held = engine_of_many(), dict[str, Item]()
    for step, arguments in steps:
        if step == "upsert":
            new = [Item(id, vector(number), pairs) for id, number, pairs in arguments]
            found.upsert(new)
            held |= {item.id: item for item in new}
        else:
            gone = {id for id in arguments if held.pop(id, None)}
            assert found.delete(arguments) == len(gone)
    assert len(found) == len(held)
    listed = [(item.id, item.metadata) for item in found.items("", 99)]
    assert listed == [(id, held[id].metadata) for id in sorted(held, key=str.encode)]
    check(found, held, Query(vector(seed), 4, offset))
    check(found, held, Query(vector(seed), 99, exclude=excluded))
    for item in held.values():
        np.testing.assert_allclose(found.vector(item.id), item.vector_D, atol=1e-6)
        check(found, held, Query(vector(seed), 99, filter=item.metadata))
        for pair in item.metadata.items():
            check(found, held, Query(vector(seed), 99, filter=dict([pair]), exclude=excluded))
            check(found, held, Query(vector(seed), 99, filter=dict([pair[::-1]])))


@pytest.fixture(scope="module")
def engine_of_many(engine, tmp_path_factory, request) -> Iterator[Callable[[], index.Collection]]:
    """Return a function that returns an empty collection."""
    if engine == "redis":
        server = request.getfixturevalue("shared_redis")
        client = vector_sets.connect(f"redis://127.0.0.1:{server.port}/6")
        collections: Collections = VectorSets(client, MODEL, D)
    else:
        collections = EmbeddedCollections(tmp_path_factory.mktemp("many"), MODEL, D)

    def empty() -> index.Collection:
        if collections.describe():
            collections.drop("many")
        found = collections.get_or_make("many", "float32")
        found.upsert(items(0))
        found.delete(["id 0"])
        return found

    yield empty
    collections.close()


@pytest.mark.parametrize("text", HOSTILE)
def test_a_filter_asks_for_equal_texts_and_nothing_else(pets, text):
    pets.upsert(
        [
            Item("value", vector(1), {"key": text}),
            Item("key", vector(2), {text: "value"}),
            Item("inside", vector(3), {f"-{text}-": f"-{text}-", f'"{text}': f'{text}"'}),
        ]
    )
    found = {hit.id for hit in pets.search(Query(vector(1), 9, filter={"key": text}))}
    assert found == {"value"}
    found = {hit.id for hit in pets.search(Query(vector(1), 9, filter={text: "value"}))}
    assert found == {"key"}
    assert pets.search(Query(vector(1), 9, filter={text: text})) == []


@pytest.mark.parametrize("limit", [10, 10_000])
@pytest.mark.parametrize("filter", [None, {"kind": "even"}])
def test_pages_make_up_the_whole_ranking(pets, monkeypatch, limit, filter):
    monkeypatch.setattr("services.retrieval.query.EXACT", limit)
    kinds = ("even", "odd")
    made = [Item(f"id {n}", vector(n // 3), {"kind": kinds[n % 2]}) for n in range(90)]  # with ties
    pets.upsert(made)
    whole = pets.search(Query(vector(5), 90, filter=filter))
    pages = [pets.search(Query(vector(5), 7, n, filter)) for n in range(0, 100, 7)]
    assert [hit for page in pages for hit in page] == whole
    assert len(whole) == (90 if filter is None else 45)


def test_the_graph_leads_to_everything_that_one_batch_added(collections, monkeypatch):
    monkeypatch.setattr("services.retrieval.query.EXACT", 10)
    made = [Item(f"id {n}", vector(n // 3), {}) for n in range(90)]
    for n in range(30):  # the graph's construction is random
        collection = collections.get_or_make(f"pets-{n}", "float32")
        collection.upsert(made)
        assert len(collection.search(Query(vector(5), 90))) == 90


def test_large_collections_are_searched_by_the_graph(pets, monkeypatch):
    monkeypatch.setattr("services.retrieval.query.EXACT", 10)
    pets.upsert(items(*range(300)))
    nearest = [pets.search(Query(vector(seed), 1))[0].id for seed in range(300)]
    assert sum(id == f"id {seed}" for seed, id in enumerate(nearest)) >= 295


def test_items_are_listed_by_the_bytes_of_their_ids(pets):
    names = ["b", "a", "B", "é", "aa", "𝄞", "\uffff", "a\0", "(a", "[a", "-", "+"]
    pets.upsert([Item(name, vector(1), {"name": name}) for name in names])
    listed, after = [], ""
    while page := pets.items(after, 5):
        assert len(page) <= 5
        listed += page
        after = page[-1].id
    assert [item.id for item in listed] == sorted(names, key=str.encode)
    assert all(item.metadata == {"name": item.id} for item in listed)


def test_collections_are_made_found_and_described(collections):
    collections.get_or_make("pets", "float32").upsert(items(1, 2))
    collections.get_or_make("cars", "float32").upsert(items(3))
    assert len(collections.get("pets")) == 2
    cars, pets = collections.describe()
    assert pets == collections.describe("pets")[0] == Description("pets", 2, D, MODEL, "float32")
    assert cars.name == "cars"


def test_a_new_start_finds_everything(start):
    start(MODEL).get_or_make("a.b", "float32").upsert(items(1, 2))
    again = start(MODEL)
    assert [d.name for d in again.describe()] == ["a.b"]
    found = again.get("a.b")
    check(found, {item.id: item for item in items(1, 2)}, Query(vector(1), 9))
    assert len(found.items("", 9)) == 2


def test_an_unknown_one_is_not_found(collections):
    for ask in (collections.get, collections.of_any_model, collections.describe, collections.drop):
        with pytest.raises(NotFound, match="no collection 'pets': index images"):
            ask("pets")


def test_a_dropped_one_is_gone_and_can_be_made_anew(collections, pets):
    pets.upsert(items(1, 2, 3))
    assert collections.drop("pets") == 3
    assert collections.describe() == []
    collections.get_or_make("pets", "float32").upsert(items(4))
    assert [item.id for item in collections.get("pets").items("", 9)] == ["id 4"]


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
    again.get_or_make("pets-2", "float32").upsert(items(1))
    assert [found.dtype for found in again.describe()] == ["int8", "float32"]


def test_vectors_of_another_calibration_are_refused(start):
    start(MODEL).get_or_make("pets", "int8:4caf4841").upsert(items(1))
    expected = (
        r"in int8:4caf4841, but this service computes in int8:01234567, .* precisions: index the"
    )
    with pytest.raises(InvalidRequest, match=expected):
        start(MODEL).get_or_make("pets", "int8:01234567")


def limits(items: int, collections: int) -> Settings:
    return Settings(max_collection_items=items, max_collections=collections)


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
    start(MODEL).get_or_make("pets", "float32").upsert(items(1))  # torch has no graphs
    start(others).get("pets").search(Query(vector(1), 1))
    start(ours).get_or_make("pets", "float32").upsert(items(2))
    refused = start(others)
    for ask in (refused.get, partial(refused.get_or_make, dtype="float32")):
        with pytest.raises(InvalidRequest, match="with graphs 111111111111, this service runs"):
            ask("pets")
    assert refused.describe("pets") == [Description("pets", 2, D, ours, "float32")]
    for agreeing in (ours, MODEL):
        assert start(agreeing).get_or_make("pets", "float32").upsert(items(1)) == 1


@pytest.mark.parametrize("ids", [set(), {"id 1"}, {"id 1", "id 3", "x"}, {*HOSTILE}])
def test_ids_that_a_collection_holds_are_counted(collections, ids):
    pets = collections.get_or_make("pets", "float32")
    assert pets.holds(ids) == 0
    pets.upsert(items(1, 2, 3))
    assert pets.holds(ids) == len(ids & {"id 1", "id 2", "id 3"})


def test_hostile_texts_are_what_they_claim() -> None:
    assert {c for text in HOSTILE for c in text} & set(string.punctuation) >= set("\"'\\{}:,.*")
