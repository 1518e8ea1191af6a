"""Redis is killed while services write objects and concepts to it, and search."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import grpc
import pytest
from samclip.v1 import samclip_pb2 as pb

from services.settings import Settings
from tests import redis_server
from tests.close import assert_close
from tests.in_process import Caller, png
from tests.redis_server import RedisServer

DURABLE = "--appendonly", "yes", "--appendfsync", "always"
BOX = pb.Box(x_min=5, y_min=0, x_max=20, y_max=30)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server.running(tmp_path, *DURABLE) as server:
        yield server


@pytest.fixture
def settings(settings: Settings, store: RedisServer) -> Settings:
    return settings.model_copy(update={"redis_url": store.url})


def image(number: int) -> pb.Image:
    return pb.Image(encoded=png(number % 256))


async def add_objects(caller: Caller, number: int) -> str:
    item = pb.IndexItem(id=f"item {number}", image=image(number))
    request = pb.IndexRequest(collection="pets", items=[item], objects=True)
    assert (await caller("Index", request)).indexed == 1
    return item.id


async def add_concept(caller: Caller, number: int) -> str:
    example = pb.Example(image=image(number), box=BOX)
    request = pb.PutConceptRequest(name=f"concept {number}", examples=[example])
    await caller("PutConcept", request)
    return request.name


async def find(caller: Caller) -> pb.SearchResponse:
    """Search for objects in a collection that does not change."""
    request = pb.SearchRequest(collection="known", image=image(3), objects=True)
    return await caller("Search", request)


class Worker:
    """Asks one question after another; ``done`` has the answers of those that did not fail."""

    def __init__(self, ask: Callable[[int], Awaitable[object]]) -> None:
        self.done, self.failed, self._ask = list[object](), 0, ask
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        number = 0
        while True:
            number += 1
            try:
                self.done.append(await self._ask(number))
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                self.failed += 1
                await asyncio.sleep(0.02)

    async def more(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self.task.done():
                self.task.result()
            await asyncio.sleep(0.02)


async def test_no_acknowledged_object_or_concept_is_lost_and_no_answer_is_wrong(
    caller: Caller, store: RedisServer
) -> None:
    items = [pb.IndexItem(id=f"{n}", image=image(n)) for n in range(6)]
    await caller("Index", pb.IndexRequest(collection="known", items=items, objects=True))
    expected = await find(caller)
    assert expected.hits
    writers = [
        Worker(lambda number: add_objects(caller, number)),
        Worker(lambda number: add_concept(caller, number)),
    ]
    reader = Worker(lambda _: find(caller))
    workers = [*writers, reader]
    for _ in range(2):
        for worker in workers:
            before = len(worker.done)
            await worker.more(lambda worker=worker, before=before: len(worker.done) > before + 3)
        failed = [worker.failed for worker in workers]
        store.kill()
        for worker, count in zip(workers, failed, strict=True):
            await worker.more(lambda worker=worker, count=count: worker.failed > count)
        store.start()
    for worker in workers:
        before = len(worker.done)
        await worker.more(lambda worker=worker, before=before: len(worker.done) > before + 3)
        worker.task.cancel()
    everything = pb.SearchRequest(collection="pets", image=image(0), objects=True, top_k=10_000)
    ids = {hit.id for hit in (await caller("Search", everything)).hits}
    assert ids >= {*writers[0].done}
    names = {one.name for one in (await caller("ListConcepts", pb.ListConceptsRequest())).concepts}
    assert names >= {*writers[1].done}
    for answer in [*reader.done, await find(caller)]:
        assert_close(answer, expected)
