"""A Redis that is killed loses no acknowledged object or concept, and no answer is wrong."""

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


def item(number: int) -> pb.IndexItem:
    return pb.IndexItem(id=f"item {number}", image=pb.Image(encoded=png(number % 256)))


class Worker:
    """Asks one question after another; ``done`` has those that were answered, with the answers."""

    def __init__(self, ask: Callable[[int], Awaitable[object]]) -> None:
        self.done, self.failed, self._ask = dict[int, object](), 0, ask
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        number = 0
        while True:
            number += 1
            try:
                self.done[number] = await self._ask(number)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                self.failed += 1
                await asyncio.sleep(0.02)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self.task.done():
                self.task.result()
            await asyncio.sleep(0.02)

    async def answered(self) -> None:
        """Wait until three more questions are answered."""
        wanted = len(self.done) + 3
        await self.until(lambda: len(self.done) >= wanted)


async def test_objects_and_concepts_outlive_it(caller: Caller, store: RedisServer) -> None:
    search = pb.SearchRequest(collection="known", image=item(3).image, objects=True, top_k=100)
    known = [item(number) for number in range(6)]
    await caller("Index", pb.IndexRequest(collection="known", items=known, objects=True))
    expected = await caller("Search", search)
    assert expected.hits

    def index(number: int) -> Awaitable[object]:
        request = pb.IndexRequest(collection="pets", items=[item(number)], objects=True)
        return caller("Index", request)

    def put_concept(number: int) -> Awaitable[object]:
        examples = [pb.Example(image=item(number).image, box=BOX)]
        request = pb.PutConceptRequest(name=f"concept {number}", examples=examples)
        return caller("PutConcept", request)

    workers = [Worker(index), Worker(put_concept), Worker(lambda _: caller("Search", search))]
    indexer, putter, searcher = workers
    for worker in workers:
        await worker.answered()
    failed = [worker.failed for worker in workers]
    store.kill()
    for worker, before in zip(workers, failed, strict=True):
        await worker.until(lambda worker=worker, before=before: worker.failed > before)
    store.start()
    for worker in workers:
        await worker.answered()
        worker.task.cancel()
    everything = pb.SearchRequest(collection="pets", image=item(0).image, objects=True, top_k=1000)
    ids = {hit.id for hit in (await caller("Search", everything)).hits}
    assert ids >= {f"item {number}" for number in indexer.done}
    listed = await caller("ListConcepts", pb.ListConceptsRequest())
    assert {c.name for c in listed.concepts} >= {f"concept {number}" for number in putter.done}
    for answer in [*searcher.done.values(), await caller("Search", search)]:
        assert_close(answer, expected)
