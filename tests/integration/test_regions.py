"""Regions in Redis: searched once for all processes, verified, and answered without Redis too."""

import asyncio

import pytest
from samclip.v1 import samclip_pb2 as pb

from samclip_core.regions import Regions
from services.backbone.embedder import Embedder
from tests.in_process import ANYBODY, png

REGIONS = (pb.REGIONS,)


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
