"""The index's thread: calls take turns, additions go together, and work is done meanwhile."""

import asyncio
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial

import pytest

from samclip_core.errors import InvalidRequest, Unavailable
from services.batching.priority import Priority
from services.retrieval import builds, engine
from services.retrieval.collection import Collection
from services.retrieval.engine import IndexThread
from services.retrieval.query import Query
from services.retrieval.registry import Registry
from services.retrieval.rows import Item
from services.settings import Settings
from tests.unit.services.batching.device import NOW
from tests.vectors import MODEL, D, items, vector


@pytest.fixture
def index(settings, tmp_path):
    found = IndexThread(settings.model_copy(update={"index_dir": tmp_path / "index"}))
    found.collections(MODEL, D)
    return found


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not done():
            await asyncio.sleep(0.001)


def pets(index: IndexThread) -> Collection:
    return index.collections(MODEL, D).get_or_make("pets", "float32")


def adding(index: IndexThread, made: Sequence[Item], settings: Settings) -> asyncio.Task[int]:
    def add(together: Sequence[Sequence[Item]]) -> list[int]:
        collections = index.collections(MODEL, D)
        return collections.add_together("pets", "float32", together, settings)

    return asyncio.create_task(index.add(NOW, "pets", made, add, 1))


async def test_additions_that_wait_go_together(index) -> None:
    """32 clients that add one item each make a few commits, and each learns what it replaced."""
    await index.run(NOW, lambda: pets(index).upsert(items(0)))
    before = pets(index)._items.version
    held = threading.Event()
    busy = asyncio.create_task(index.run(NOW, held.wait))
    added = [adding(index, items(seed // 2), Settings()) for seed in range(32)]
    await asyncio.sleep(0)
    held.set()
    assert await asyncio.gather(*added) == [1, 1, *[0, 1] * 15]
    assert await busy
    assert len(pets(index)) == 16
    assert pets(index)._items.version <= before + 2


async def test_of_additions_that_wait_only_that_at_fault_is_refused(index) -> None:
    few = Settings(max_collection_items=4)
    held = threading.Event()
    busy = asyncio.create_task(index.run(NOW, held.wait))
    added = [adding(index, items(*seeds), few) for seeds in ((1, 2), (3, 4, 5), (6, 7), (1,))]
    await asyncio.sleep(0)
    held.set()
    assert await busy
    first, second, third, last = await asyncio.gather(*added, return_exceptions=True)
    assert (first, third, last) == (0, 0, 1)
    assert isinstance(second, InvalidRequest)
    assert len(pets(index)) == 4


async def test_an_addition_that_is_cancelled_before_its_turn_stores_nothing(index) -> None:
    held = threading.Event()
    busy = asyncio.create_task(index.run(NOW, held.wait))
    gone, stays = adding(index, items(1), Settings()), adding(index, items(2), Settings())
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    held.set()
    assert (await busy, await stays) == (True, 0)
    assert [item.id for item in pets(index).items("", 9)] == ["id 2"]


async def test_an_index_is_built_while_calls_are_answered(index, monkeypatch) -> None:
    monkeypatch.setattr(builds, "INDEXED", 300)
    begun, go_on = threading.Event(), threading.Event()

    def slow(*arguments: object) -> None:
        begun.set()
        assert go_on.wait(60)
        built(*arguments)

    built = builds._add_vectors
    monkeypatch.setattr(builds, "_add_vectors", slow)
    await index.run(NOW, lambda: pets(index).upsert(items(*range(400))))
    await until(begun.is_set)
    search = partial(lambda seed: pets(index).search(Query(vector(seed), 1))[0].id)
    assert await index.run(NOW, partial(search, 7)) == "id 7"
    await index.run(NOW, lambda: pets(index).upsert(items(*range(400, 410))))
    go_on.set()
    await until(lambda: "IvfRq" in [one.index_type for one in pets(index)._items.list_indices()])
    for seed in (7, 399, 405):
        assert await index.run(NOW, partial(search, seed)) == f"id {seed}"


async def test_builds_are_in_turns_with_additions(index, monkeypatch) -> None:
    """A tenant that adds items all the time has nobody's index built only at a lower pace."""
    done = list[str]()

    def due(registry: Registry) -> Callable[[], None] | None:
        done.append("build")
        return (lambda: None) if done.count("build") < 10 else None

    async def add() -> None:
        while done.count("build") < 10:
            bulk = Priority(bulk=True, tenant="ann")
            await index.run(bulk, lambda: done.append("add"), engine.BUILD_WORK / 4)

    monkeypatch.setattr(Registry, "due", due)
    async with asyncio.timeout(60):
        await asyncio.gather(*(add() for _ in range(5)))


async def test_work_that_fails_is_named_and_stops_nothing(index, monkeypatch, caplog) -> None:
    def fails(table: object) -> None:
        raise RuntimeError("commit conflict")

    monkeypatch.setattr(builds, "FRAGMENTS", 2)
    monkeypatch.setattr(builds, "join", fails)
    for seed in range(4):
        await index.run(NOW, lambda seed=seed: pets(index).upsert(items(seed)))
    await until(lambda: "is not optimised now" in caplog.text)
    assert len(await index.run(NOW, lambda: pets(index).search(Query(vector(1), 9)))) == 4


def test_work_on_the_entries_that_fails_rests(tmp_path, monkeypatch, caplog) -> None:
    def fails(table: object) -> None:
        raise RuntimeError("commit conflict")

    monkeypatch.setattr(builds, "FRAGMENTS", 4)
    monkeypatch.setattr(builds, "join", fails)
    registry = Registry(tmp_path)
    for number in range(8):
        registry.make(f"pets {number}", MODEL, D, "float32")
    for _ in range(9):
        if work := registry.due():
            work()
    assert caplog.text.count("collections is not optimised now") == 1


def opened(index: weakref.ref[IndexThread]) -> int:
    return len(index().collections(MODEL, D))


async def test_an_index_that_nobody_uses_is_closed_and_leaves_no_task(settings, tmp_path) -> None:
    index = IndexThread(settings.model_copy(update={"index_dir": tmp_path / "index"}))
    await index.run(NOW, partial(opened, weakref.ref(index)))
    del index
    await until(lambda: len(asyncio.all_tasks()) == 1)


async def test_a_folder_that_cannot_be_used_is_tried_again(settings, tmp_path, caplog) -> None:
    place = tmp_path / "index"
    place.write_text("a file")
    index = IndexThread(settings.model_copy(update={"index_dir": place}))
    with pytest.raises(Unavailable, match="check the disk, or the bucket"):
        await index.run(NOW, partial(index.collections, MODEL, D))
    assert "cannot be used" in caplog.text
    place.unlink()
    assert len(await index.run(NOW, partial(index.collections, MODEL, D))) == 0
