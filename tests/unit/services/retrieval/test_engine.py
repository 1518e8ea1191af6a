"""The index's thread builds graphs while no call waits."""

import asyncio
import threading
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from time import monotonic, sleep

import pytest

from samclip_core.answers.steps import Steps
from samclip_core.errors import DeadlineExceeded
from services.batching import threads
from services.batching.priority import Priority
from services.retrieval import engine, graph
from services.retrieval.collection import EmbeddedCollection
from services.retrieval.embedded import EmbeddedCollections
from services.retrieval.engine import IndexThread
from services.retrieval.query import Query
from tests.unit.services.batching.device import NOW
from tests.vectors import MODEL, D, finished, items, vector, with_objects


async def test_a_graph_is_built_between_calls(settings, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(graph, "UNINDEXED", 10)
    monkeypatch.setattr(graph, "ADDED", 5)
    monkeypatch.setattr("services.retrieval.query.EXACT", 10)
    index = IndexThread(settings.model_copy(update={"index_dir": tmp_path / "index"}))

    def add() -> None:
        index.collections(MODEL, D).get_or_make("pets", "float32").upsert(items(*range(100)))

    def nearest(seed: int) -> str:
        return finished(index.collections(MODEL, D).get("pets").search(Query(vector(seed), 1)))[
            0
        ].id

    await index.run(NOW, add)
    while not (tmp_path / "index/pets.usearch").exists():
        assert await index.run(NOW, partial(nearest, 7)) == "id 7"
        await asyncio.sleep(0.01)
    assert await index.run(NOW, partial(nearest, 99)) == "id 99"


@pytest.fixture
def index(settings, tmp_path):
    found = IndexThread(settings.model_copy(update={"index_dir": tmp_path / "index"}))
    found.collections(MODEL, D)
    return found


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not done():
            await asyncio.sleep(0.001)


async def settled(index: IndexThread) -> None:
    """Wait until the thread has done what it has been given."""
    await asyncio.wrap_future(index._threads._pool.submit(lambda: None))


async def test_graphs_are_built_in_turns_with_additions(index, monkeypatch) -> None:
    """A tenant that adds items all the time has nobody's graph built only at a lower pace."""
    done = list[str]()

    def build(collections: EmbeddedCollections) -> bool:
        done.append("build")
        return done.count("build") < 10

    async def add() -> None:
        while done.count("build") < 10:
            bulk = Priority(bulk=True, tenant="ann")
            await index.run(bulk, lambda: done.append("add"), engine.BUILD_WORK / 4)

    monkeypatch.setattr(EmbeddedCollections, "build", build)
    async with asyncio.timeout(60):
        await asyncio.gather(*(add() for _ in range(5)))
    first, last = done.index("build"), len(done) - done[::-1].index("build")
    assert done[first:last].count("add") >= 9 * 4 - 4  # four per build


async def test_builds_do_not_falsify_how_long_a_call_is_expected_to_take(index, monkeypatch):
    """One that has nothing to do takes no time, and calls would be admitted that end too late."""
    built = asyncio.Event()
    loop = asyncio.get_running_loop()

    def build(collections: EmbeddedCollections) -> bool:
        loop.call_soon_threadsafe(built.set)
        return False

    monkeypatch.setattr(EmbeddedCollections, "build", build)
    await index.run(NOW, partial(sleep, 0.01))
    pace_s = index._threads._queue._admission.pace_s
    assert pace_s >= 0.01
    await built.wait()
    await index._builder
    assert index._threads._queue._admission.pace_s == pytest.approx(pace_s)


def test_searches_in_steps_give_way_to_other_tenants(index, monkeypatch) -> None:
    """Beside 30 searches of 100 steps each, a call of another tenant waits for a few steps."""
    monkeypatch.setattr(threads, "TURN_S", 0)
    done = list[str]()

    def search(tenant: str, steps: int) -> Steps[str]:
        for _ in range(steps):
            done.append(tenant)
            yield None
        return tenant

    def begin(tenant: str, steps: int) -> Callable[[], Steps[str]]:
        return lambda: search(tenant, steps)

    async def load() -> None:
        ann, bob = Priority(tenant="ann"), Priority(tenant="bob")
        many = [asyncio.create_task(index.run_steps(ann, begin("ann", 100))) for _ in range(30)]
        while not done:
            await asyncio.sleep(0)
        before = len(done)
        assert await index.run(bob, lambda: len(done)) <= before + 2
        assert await index.run_steps(bob, begin("bob", 10)) == "bob"
        first, last = done.index("bob"), len(done) - done[::-1].index("bob")
        assert last - first <= 3 * 10  # they take turns
        assert await asyncio.gather(*many) == ["ann"] * 30
        assert len(done) == 30 * 100 + 10

    asyncio.run(load())


def test_searches_of_a_tenant_are_finished_in_order_and_give_way_to_its_small_calls(
    index, monkeypatch
) -> None:
    """Otherwise all searches of an overloaded service would miss their deadlines, not some."""
    monkeypatch.setattr(threads, "TURN_S", 0)
    done = list[int]()

    def search(number: int) -> Steps[int]:
        for _ in range(20):
            done.append(number)
            yield None
        return number

    async def load() -> None:
        searches = range(10)
        many = [
            asyncio.create_task(index.run_steps(NOW, partial(search, number)))
            for number in searches
        ]
        while not done:
            await asyncio.sleep(0)
        await index.run(NOW, lambda: None)  # all have begun
        for _ in range(5):
            before = len(done)
            assert await index.run(NOW, lambda: len(done)) <= before + 2
        assert await asyncio.gather(*many) == [*searches]
        finished = [len(done) - done[::-1].index(number) for number in searches]
        assert finished == sorted(finished)
        assert finished[0] <= 20 + 2 * len(searches)  # each other one has begun

    asyncio.run(load())


def test_a_search_that_ends_early_is_closed_in_the_thread(index, monkeypatch) -> None:
    monkeypatch.setattr(threads, "TURN_S", 0)
    begun, closed = list[str](), list[str]()

    def search(fails: bool) -> Steps[None]:
        begun.append(threading.current_thread().name)
        try:
            yield None
            while not fails:
                yield None
            raise ZeroDivisionError
        finally:
            closed.append(threading.current_thread().name)

    async def load() -> None:
        with pytest.raises(ZeroDivisionError):
            await index.run_steps(NOW, lambda: search(True))
        call = asyncio.create_task(index.run_steps(NOW, lambda: search(False)))
        await until(lambda: len(begun) == 2)
        call.cancel()
        await until(lambda: len(closed) == 2)
        soon = Priority(deadline=monotonic() + 0.05)
        with pytest.raises(DeadlineExceeded):
            await index.run_steps(soon, lambda: search(False))
        await settled(index)

    asyncio.run(load())
    assert closed == begun


def opened(index: weakref.ref[IndexThread]) -> int:
    return len(index().collections(MODEL, D))


async def test_an_index_that_nobody_uses_is_closed_and_leaves_no_task(settings, tmp_path) -> None:
    index = IndexThread(settings.model_copy(update={"index_dir": tmp_path / "index"}))
    await index.run(NOW, partial(opened, weakref.ref(index)))
    del index
    await until(lambda: len(asyncio.all_tasks()) == 1)
    EmbeddedCollections(tmp_path / "index", MODEL, D).close()  # its lock is free


@pytest.mark.parametrize("objects", [False, True])
async def test_an_answer_has_the_items_of_one_moment(index, monkeypatch, objects) -> None:
    """All items are replaced, deleted and added between the steps of a search."""
    monkeypatch.setattr(threads, "TURN_S", 0)
    monkeypatch.setattr("services.retrieval.collection.PART", 4)
    monkeypatch.setattr("services.retrieval.object_search.PAGE", 4)

    def pets() -> EmbeddedCollection:
        return index.collections(MODEL, D).get_or_make("pets", "float32")

    def put(version: str, seeds: Iterable[int]) -> None:
        made = [with_objects(seed) for seed in seeds]
        pets().upsert([replace(item, metadata={"in": "all", "of": version}) for item in made])

    def search() -> Steps[list]:
        query = Query(vector(1), 100, filter={"in": "all"})
        return pets().search_objects(query) if objects else pets().search(query)

    expected = {f"id {seed}" for seed in range(40)}
    await index.run(NOW, lambda: put("0", range(40)))
    for number in range(5):
        version = str(number)
        searching = asyncio.create_task(index.run_steps(NOW, search))
        await index.run(NOW, lambda: None)  # it has begun
        if version == "3":
            await index.run(NOW, lambda: pets().delete([*expected]))
        if version == "4":
            await index.run(NOW, lambda: index.collections(MODEL, D).drop("pets"))
        await index.run(NOW, partial(put, str(number + 1), range(40)))
        await index.run(NOW, lambda: put("later", range(50, 60)))
        hits = [hit[0] if objects else hit for hit in await searching]
        assert {hit.id for hit in hits} == expected
        assert {hit.metadata["of"] for hit in hits} == {version}
        await index.run(NOW, lambda: pets().delete([f"id {seed}" for seed in range(50, 60)]))
    assert len(await index.run_steps(NOW, search)) == 40  # also after it was made anew
