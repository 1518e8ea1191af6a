"""Regions in Redis: searched once for all processes, verified, and answered without Redis too."""

import asyncio

import pytest
from redis.asyncio import Redis
from samclip.v1 import samclip_pb2 as pb

from samclip_core.regions import Regions
from services.backbone.embedder import Embedder
from services.cache import connection
from tests.in_process import ANYBODY, png

REGIONS = (pb.REGIONS,)


@pytest.fixture
async def redis(own_redis):
    async with Redis(port=own_redis.port) as client:
        yield client


@pytest.fixture
async def embedders(tiny_model, settings, own_redis):
    chosen = {"redis_url": own_redis.url, "redis_timeout_ms": 60_000, "cache_bytes": 0}
    embedders = [Embedder(tiny_model, settings.model_copy(update=chosen)) for _ in range(2)]
    yield embedders
    for embedder in embedders:
        await embedder.close()


@pytest.fixture
def searches(monkeypatch):
    """Return a list that grows with every search."""
    runs, search = [], Regions.pack
    monkeypatch.setattr(Regions, "pack", lambda regions: runs.append(1) or search(regions))
    return runs


async def packed(embedder: Embedder, image: bytes) -> bytes:
    found = await embedder.embed(ANYBODY, image, REGIONS)
    return found.entries[pb.REGIONS].array.tobytes()


async def test_processes_that_share_a_redis_search_once(embedders, searches):
    found = await asyncio.gather(*(packed(embedders[i % 2], png(21)) for i in range(8)))
    assert len(set(found)) == len(searches) == 1
    await embedders[0].cache._shared.settled()
    assert await packed(embedders[1], png(21)) == found[0]
    assert len(searches) == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "other"])
async def test_damaged_regions_are_searched_again(embedders, redis, searches, damage):
    whole = await packed(embedders[0], png(22))
    await embedders[0].cache._shared.settled()
    (name,) = await redis.keys("samclip:cache:*:REGIONS-*")
    stored = bytearray(await redis.get(name))
    stored[-1] ^= 1
    wrong = {"flip": bytes(stored), "cut": bytes(stored[:-9]), "other": b"SCE1 of nobody"}
    await redis.set(name, wrong[damage])
    assert await packed(embedders[1], png(22)) == whole
    assert len(searches) == 2


async def test_regions_come_although_redis_dies_during_the_search(
    embedders, own_redis, tiny_model, monkeypatch
):
    monkeypatch.setattr(connection, "PROBE_S", 0.02)
    begun, decode = asyncio.Event(), tiny_model.sam_head.decode_batch
    loop = asyncio.get_running_loop()

    def slow(*args):
        loop.call_soon_threadsafe(begun.set)
        return decode(*args)

    monkeypatch.setattr(tiny_model.sam_head, "decode_batch", slow)
    call = asyncio.create_task(packed(embedders[0], png(23)))
    await begun.wait()
    await asyncio.to_thread(own_redis.kill)
    assert Regions.unpack(await call).area_R.size
    assert Regions.unpack(await packed(embedders[1], png(23))).area_R.size
