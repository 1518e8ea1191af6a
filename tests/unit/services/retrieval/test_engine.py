"""The index's thread builds graphs while no call waits."""

import asyncio

from services.retrieval import graph
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
