"""``samclip reindex`` in a Redis, between collections of any number of shards."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import redis
import samclip
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from services.backbone.app import Backbone
from services.retrieval import reindex
from services.retrieval.app import Retrieval
from services.retrieval.index import Item
from services.retrieval.redis_engine import VectorSets
from services.retrieval.vector_sets import connect
from tests.close import assert_close
from tests.in_process import ADMITTED, png, served
from tests.vectors import OTHER, D, vector

Answer = list[tuple[str, dict[str, str], float]]


def owner(number: int) -> dict[str, str]:
    return {"owner": "ann" if number % 3 else "ben"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder of pictures: 0/0.png, 1/1.png …, 0/4.png …"""
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(24):
        path = folder / path_of(number)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(10 * number, noise=number))
    return folder


def path_of(number: int) -> str:
    return f"{number % 4}/{number}.png"


@asynccontextmanager
async def client_of(made: object, shards: int) -> AsyncIterator[samclip.Client]:
    """Serve collections whose new ones have so many shards."""
    service = Retrieval(made.model_copy(update={"collection_shards": shards}))
    try:
        async with served(service) as port:
            with samclip.Client(f"127.0.0.1:{port}") as client:
                client._session.headers.extend(ADMITTED)
                yield client
    finally:
        await service.close()
        service.__del__()  # Serve calls it when a replica stops


def answers(client: samclip.Client, name: str, root: Path, numbers: list[int]) -> list[Answer]:
    """Return what searches and lists say about a collection, each in the order of ids."""
    image = client.image(root / path_of(numbers[0]))
    pages = [
        client.search(name, image=image, top_k=24),
        client.search(name, id=path_of(numbers[-1]), top_k=24),
        client.search(name, text="a dog", top_k=24, filter={"owner": "ann"}),
        client.search(name, text="grass", top_k=5, offset=3),
    ]
    found = [[(hit.id, dict(hit.metadata), hit.score) for hit in page] for page in pages]
    (described,) = client.describe(name)
    listed = client.list_items(name, limit=100)
    assert described.count == len(listed) == len(numbers)
    return [*map(sorted, found), [(item.id, dict(item.metadata), 0.0) for item in listed]]


async def scene(made: object, root: Path, before: int, after: int, numbers: list[int]) -> None:
    """Index pictures, and again those of that collection and of another model's."""
    ids = {path_of(number): owner(number) for number in numbers}
    images = {id: (root / id).read_bytes() for id in ids}
    with closing(VectorSets(connect(made.redis_url), OTHER, D, before)) as others:
        items = [Item(path_of(n), vector(n), owner(n)) for n in numbers]
        others.get_or_make("others", "float32").upsert(items)
    async with client_of(made, before) as client:
        done = await asyncio.to_thread(client.index, "old", images, metadata=ids)
        assert (done.indexed, done.errors) == (len(ids), {})
    async with client_of(made, after) as client:

        def again() -> None:
            expected = answers(client, "old", root, numbers)
            for source, target in (("old", "new"), ("others", "another")):
                for indexed in (len(ids), 0):
                    found = reindex.reindex(client, source, target, str(root))
                    assert (found.indexed, found.errors) == (indexed, {})
                assert_close(answers(client, target, root, numbers), expected, 1e-4)

        await asyncio.to_thread(again)


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shards=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    numbers=st.sets(st.integers(0, 23), min_size=1).map(sorted),
)
@example(shards=(0, 3), numbers=[*range(24)])
@example(shards=(4, 2), numbers=[*range(24)])
def test_a_collection_made_again_gives_the_same_answers(
    request, shared_redis, tiny_model, cold, root, shards, numbers
) -> None:
    url = f"redis://127.0.0.1:{shared_redis.port}/7"
    made = request.getfixturevalue("settings").model_copy(update={"redis_url": url})

    async def run() -> None:
        backbone = Backbone(made, tiny_model)
        try:
            async with served(backbone) as port:
                inside = made.model_copy(update={"inner_grpc_port": port})
                await scene(inside, root, *shards, numbers)
        finally:
            await backbone.close()

    with redis.Redis.from_url(url) as store:
        store.flushdb()
    asyncio.run(run())
