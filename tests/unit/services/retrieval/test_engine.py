"""The index's thread builds graphs while no call waits."""

import asyncio
from collections.abc import Callable
from unittest.mock import Mock

import pytest

from services.retrieval import engine, graph
from services.retrieval.embedded import EmbeddedCollections
from services.retrieval.engine import OwnIndex
from services.retrieval.query import Query
from tests.vectors import MODEL, D, items, vector


async def test_a_graph_is_built_between_calls(settings, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(graph, "UNINDEXED", 10)
    monkeypatch.setattr(graph, "ADDED", 5)
    monkeypatch.setattr("services.retrieval.query.EXACT", 10)
    index = OwnIndex(settings.model_copy(update={"index_dir": tmp_path / "index"}))

    def add() -> None:
        index.collections(MODEL, D).get_or_make("pets", "float32").upsert(items(*range(100)))

    def nearest(seed: int) -> str:
        return index.collections(MODEL, D).get("pets").search(Query(vector(seed), 1))[0].id

    await index.run(add)
    while not (tmp_path / "index/pets.usearch").exists():
        assert await index.run(nearest, 7) == "id 7"
        await asyncio.sleep(0.01)
    assert await index.run(nearest, 99) == "id 99"


class EarlyLoop(asyncio.SelectorEventLoop):
    """Calls before the time, as uvloop often does."""

    def call_later(self, delay, callback, *args, context=None):
        return super().call_later(0.9 * delay, callback, *args, context=context)


@pytest.fixture(params=["asyncio", "early", "uvloop"])
def loop_factory(request):
    """The loops that a service may run on."""
    match request.param:
        case "asyncio":
            return asyncio.SelectorEventLoop
        case "early":
            return EarlyLoop
    return pytest.importorskip("uvloop").new_event_loop


@pytest.fixture
def index(settings, tmp_path):
    found = OwnIndex(settings.model_copy(update={"index_dir": tmp_path / "index"}))
    found.collections(MODEL, D)
    return found


@pytest.fixture
def built(monkeypatch) -> Mock:
    found = Mock(return_value=False)
    monkeypatch.setattr(EmbeddedCollections, "build", found)
    return found


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not done():
            await asyncio.sleep(0.001)


async def settled(index: OwnIndex) -> None:
    """Wait until the thread has done what it has been given."""
    await asyncio.wrap_future(index._thread.submit(lambda: None))


def test_no_graph_is_built_while_items_are_being_added(index, built, monkeypatch, loop_factory):
    async def load() -> None:
        monkeypatch.setattr(engine, "PAUSE_S", 1000)
        for _ in range(3):
            index.put_off(100)
            await index.run(lambda: None)
            await index.run(lambda: None)
        assert built.call_count == 0

    async def add(after_s: float) -> None:
        built.reset_mock()
        monkeypatch.setattr(engine, "PAUSE_S", after_s)
        index._pause_until, index._timer = 0, False
        index.put_off(1)
        await until(lambda: built.call_count > 0)  # without another call

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(load())
        for milliseconds in range(1, 21):
            runner.run(add(milliseconds / 1000))


def test_one_timer_waits_for_the_end_of_all_additions(index, built, monkeypatch, loop_factory):
    async def load() -> None:
        later = Mock(wraps=asyncio.get_running_loop().call_later)
        with monkeypatch.context() as patch:
            patch.setattr(asyncio, "get_running_loop", lambda: Mock(call_later=later))
            for _ in range(100):
                index.put_off(100)
        assert later.call_count == 1
        (_, _, kept) = later.call_args.args
        assert kept() is index  # and not kept alive

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(load())


async def test_additions_put_off_graphs_for_some_time_only(index, built, monkeypatch) -> None:
    """Otherwise, one tenant that adds the same items again and again has nobody's graph built."""
    now = 1000.0
    monkeypatch.setattr(engine, "monotonic", lambda: now)
    monkeypatch.setattr(engine, "PAUSE_S", 1)
    built.return_value = True

    async def load() -> None:
        for _ in range(3):
            index.put_off(1000)
            await index.run(lambda: None)

    for _ in range(3):
        built.reset_mock()
        await load()
        now += engine.LONGEST_PAUSE_S - 1
        await load()
        await settled(index)
        assert built.call_count == 0
        now += 1
        index._calls += 1  # one always waits
        index.put_off(1000)  # in vain
        await index.run(lambda: None)
        await until(lambda: built.call_count >= engine.TURN)
        await settled(index)
        assert built.call_count == engine.TURN
        index._calls -= 1


async def test_additions_put_off_graphs_again_if_there_is_nothing_to_do(index, built, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(engine, "monotonic", lambda: now)
    monkeypatch.setattr(engine, "PAUSE_S", 1)
    index.put_off(1000)
    now += engine.LONGEST_PAUSE_S
    await index.run(lambda: None)
    await settled(index)
    assert built.call_count == 1
    index.put_off(1000)
    await index.run(lambda: None)
    await settled(index)
    assert built.call_count == 1
