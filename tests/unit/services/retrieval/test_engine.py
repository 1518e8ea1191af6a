"""The index's thread builds graphs while no call waits."""

import asyncio
from unittest.mock import Mock

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


async def test_no_graph_is_built_while_items_are_being_added(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "UNINDEXED", 10)
    index = OwnIndex(settings.model_copy(update={"index_dir": tmp_path / "index"}))

    def add() -> None:
        index.collections(MODEL, D).get_or_make("pets", "float32").upsert(items(*range(100)))

    built = Mock(return_value=False)
    monkeypatch.setattr(EmbeddedCollections, "build", built)
    monkeypatch.setattr(engine, "PAUSE_S", 1000)
    for _ in range(3):
        index.put_off(100)
        await index.run(add)
        await index.run(lambda: None)
    assert built.call_count == 0
    monkeypatch.setattr(engine, "PAUSE_S", 0.0001)
    index._pause_until = 0
    index.put_off(100)
    while not built.call_count:  # without another call
        await asyncio.sleep(0.01)
