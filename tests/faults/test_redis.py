"""A Redis that is killed, frozen, slow, full, corrupt or empty under load."""

import asyncio
import shutil
import time
from collections.abc import Callable
from contextlib import closing

import grpc
import httpx
import pytest
import redis
from samclip.v1 import samclip_pb2 as pb
from samclip.v1 import samclip_pb2_grpc as rpc

from tests.e2e.conftest import Service
from tests.faults.conftest import Loaded
from tests.faults.load import LABELS, PATIENT_S, POINT, Pictures
from tests.faults.relay import Relay
from tests.faults.test_processes import FAULTS
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ENTRIES = "samclip:cache:*"


def states(service: Service) -> set[str]:
    """Return the states of Redis that the services report; all services must be ready."""
    reply = httpx.get(f"{service.url}/readyz", timeout=60)
    assert reply.status_code == 200
    return {part["redis"] for part in reply.json()["services"].values()}


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENT_S
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


def admin(store: RedisServer) -> "closing[redis.Redis]":
    return closing(redis.Redis(port=store.port))


async def test_a_head_finds_what_another_had_encoded(
    service: Service, store: RedisServer, pictures: Pictures
) -> None:
    image = pb.Image(encoded=pictures.file(0, fresh=True))
    prompt = pb.Prompt(points=[pb.Point(x=POINT[0], y=POINT[1])])
    async with grpc.aio.insecure_channel(service.address) as channel:
        segment = rpc.SegmentationServiceStub(channel).Segment
        first = await segment(pb.SegmentRequest(image=image, prompts=[prompt]), timeout=300)
        assert not first.image.cached
        key = pb.Image(key=first.image.key)
        with admin(store) as client:
            names = f"samclip:cache:*{key.key}*"
            await until(lambda: len(list(client.scan_iter(names, count=1000))) == 3)
        request = pb.SegmentTextRequest(image=key, labels=LABELS)
        answer = await rpc.SemanticSegmentationServiceStub(channel).SegmentText(request)
        assert answer.image.cached
        again = await segment(pb.SegmentRequest(image=key, prompts=[prompt]), timeout=300)
        assert again.results == first.results


async def test_killed_and_started_again(
    loaded: Loaded, service: Service, store: RedisServer
) -> None:
    """Acknowledged writes are there after the restart, and the cache is used again."""
    assert states(service) == {"up"}
    async with loaded("`kill -9`, Redis; started again from its file") as load:
        store.kill()
        await until(lambda: states(service) == {"down"})
        assert not load.failures()
        store.start()
        load.mark()
        await load.recovered()
        assert not load.failures()
        await until(lambda: states(service) == {"up"})
        with admin(store) as client:
            client.delete(*client.scan_iter(ENTRIES, count=1000))
            await until(lambda: any(client.scan_iter(ENTRIES, count=1000)))


@FAULTS
async def test_frozen(loaded: Loaded, service: Service, store: RedisServer) -> None:
    async with loaded("`SIGSTOP`, Redis, for 8 s") as load:
        store.freeze()
        await asyncio.sleep(8)
        assert not load.failures()
        store.thaw()
        load.mark()


@FAULTS
async def test_slow(loaded: Loaded, line: Relay) -> None:
    """The delay exceeds the cache's timeout, but not the index's."""
    async with loaded("every answer of Redis 1.5 s late, for 10 s") as load:
        line.delay_s = 1.5
        await asyncio.sleep(10)
        line.delay_s = 0.0
        assert not load.failures()
        load.mark()


@FAULTS
async def test_full(loaded: Loaded, store: RedisServer) -> None:
    with admin(store) as client:
        async with loaded("Redis is full (`noeviction`), for 6 s") as load:
            client.config_set("maxmemory", "1mb")
            await asyncio.sleep(6)
            assert load.failures().keys() <= {"index"}
            client.config_set("maxmemory", 0)
            load.mark()


def corrupt(client: redis.Redis) -> None:
    """Damage the entries: by turns flip bytes, truncate, swap, and change the type."""
    before = b""
    for number, name in enumerate(client.scan_iter(ENTRIES, count=1000, _type="string")):
        value = client.get(name) or b""
        match number % 4:
            case 0:
                client.setrange(name, 100, b"\x01\x02\x03")
            case 1:
                client.set(name, value[:-9], keepttl=True)
            case 2:
                client.set(name, before, keepttl=True)
            case 3:
                client.delete(name)
                client.lpush(name, b"no string")
        before = value


@FAULTS
async def test_corrupt_entries(loaded: Loaded, store: RedisServer) -> None:
    """A corrupt entry is a miss: it causes neither a wrong answer nor an error."""
    with admin(store) as client:
        async with loaded("entries of the cache in Redis are damaged, for 5 s") as load:
            for _ in range(10):
                await asyncio.to_thread(corrupt, client)
                await asyncio.sleep(0.5)
            assert not load.failures()
            client.delete(*client.scan_iter(ENTRIES, count=1000))
            load.mark()
        assert not load.failures()


@FAULTS
async def test_started_again_empty(loaded: Loaded, store: RedisServer) -> None:
    """The old items are gone, and writes after the restart are kept."""
    async with loaded("Redis is started again empty; writes since then") as load:
        store.kill()
        shutil.rmtree(store.directory / "appendonlydir")
        load.questions.acknowledged.clear()
        store.start()
        await load.questions.index_known()
        load.mark()
