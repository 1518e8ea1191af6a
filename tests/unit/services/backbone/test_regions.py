"""Regions as an output of the backbone: searched once, cached, and only on demand."""

import asyncio
from dataclasses import replace
from time import monotonic

import numpy as np
import pytest
from samclip.v1 import samclip_pb2 as pb

from samclip_core.config import TaskSizes
from samclip_core.errors import InvalidRequest, Overloaded
from samclip_core.regions import Regions
from services.backbone.app import Backbone
from services.backbone.embedder import Embedder
from services.batching.priority import Priority
from services.request import wire
from services.request.context import RequestContext
from tests.fake_model import FakeModel
from tests.in_process import ANYBODY, png

REGIONS = (pb.REGIONS, pb.CLIP_POOLED)


@pytest.fixture
async def embedder(tiny_model, settings):
    embedder = Embedder(tiny_model, settings)
    yield embedder
    await embedder.close()


@pytest.fixture
def asked(tiny_model, monkeypatch):
    """Return a list that grows with every run of the mask decoder."""
    runs, decode = [], tiny_model.sam_head.decode_batch
    monkeypatch.setattr(
        tiny_model.sam_head, "decode_batch", lambda *args: runs.append(1) or decode(*args)
    )
    return runs


async def test_a_backbone_that_loads_its_own_networks_finds_regions(settings):
    backbone = Backbone(settings)
    found = await backbone.embedder.embed(ANYBODY, png(), (pb.REGIONS,))
    assert set(found.entries) == {pb.REGIONS}
    await backbone.embedder.close()


async def test_regions_are_the_librarys_own(caller, tiny_model):
    request = pb.EmbedRequest(image=pb.Image(encoded=png()), outputs=[pb.REGIONS], inline=True)
    response = await caller("Embed", request)
    (tensor,) = response.tensors
    assert (tensor.name, tensor.dtype) == ("REGIONS", "uint8")
    theirs = Regions.unpack(tensor.data)
    mine = tiny_model.regions(png()).regions
    assert len(theirs) == len(mine)
    np.testing.assert_allclose(theirs.area_R, mine.area_R, atol=0.05)
    again = await caller("Embed", request)
    assert again.cached
    assert again.tensors[0].data == tensor.data
    by_key = pb.EmbedRequest(image=pb.Image(key=response.image.key), outputs=[pb.REGIONS])
    assert (await caller("Embed", by_key)).cached


async def test_by_key_regions_are_searched_in_the_cached_embeddings(embedder, asked):
    found = await embedder.embed(ANYBODY, png(), (pb.SAM, pb.CLIP_DENSE, pb.CLIP_POOLED))
    assert not asked
    regions = await embedder.embed(ANYBODY, found.key, REGIONS)
    assert asked
    assert not regions.cached
    assert set(regions.entries) == set(REGIONS)


async def test_callers_at_once_share_one_search(embedder, asked):
    alone = await embedder.embed(ANYBODY, png(3), REGIONS)
    once = len(asked)
    several = await asyncio.gather(*(embedder.embed(ANYBODY, png(9), REGIONS) for _ in range(5)))
    assert len(asked) == 2 * once
    assert len({id(each.entries[pb.REGIONS]) for each in several}) == 1
    assert alone.key != several[0].key


def of(tenant: str, seconds: float) -> RequestContext:
    return RequestContext(priority=Priority(monotonic() + seconds, tenant=tenant))


async def test_a_search_that_would_come_too_late_is_refused_before_decoding(embedder, monkeypatch):
    """Callers of one image count once, and another tenant has its own turn."""
    embedder._decoder._long[False]._admission.pace_s = 20.0
    decoding, decode = asyncio.Event(), Embedder._encode

    async def later(*asked: object) -> object:
        await decoding.wait()
        return await decode(*asked)

    monkeypatch.setattr(Embedder, "_encode", later)
    calls = [
        asyncio.create_task(embedder.embed(of("ann", 200), png(noise=seed), REGIONS))
        for seed in (1, 1, 1, 2)
    ]
    await asyncio.sleep(0.05)
    with pytest.raises(Overloaded, match="the queue takes about 90"):
        await embedder.embed(of("ann", 80), png(noise=3), REGIONS)
    calls.append(asyncio.create_task(embedder.embed(of("bob", 80), png(noise=1), REGIONS)))
    await asyncio.sleep(0.05)
    decoding.set()
    assert all([(await call).entries for call in calls])


async def test_a_search_stops_when_nobody_waits(embedder, asked, tiny_model):
    found = await embedder.embed(ANYBODY, png(), (pb.SAM, pb.CLIP_DENSE))
    call = asyncio.create_task(embedder.embed(ANYBODY, found.key, REGIONS))
    while not asked:
        await asyncio.sleep(0.001)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.sleep(0.05)
    count = len(asked)
    await asyncio.sleep(0.1)
    assert len(asked) == count < len(_all_questions(tiny_model))
    assert await embedder.cache.get(found.key, (pb.REGIONS,), Priority()) is None
    assert (await embedder.embed(ANYBODY, found.key, REGIONS)).entries  # and a retry works


def _all_questions(model) -> range:
    prompts = model.config.points_per_side**2
    return range(prompts)


async def test_regions_do_not_come_by_default(caller):
    request = pb.EmbedRequest(image=pb.Image(encoded=png(77)))
    response = await caller("Embed", request)
    assert [tensor.name for tensor in response.tensors] == [
        pb.Output.Name(output) for output in wire.ENCODED if output != pb.SAM_FINE
    ]


async def test_regions_need_the_frame_of_masks(settings):
    model = FakeModel()
    sizes = TaskSizes(classify=64, semantic=96, retrieval=128)
    model.config = replace(model.config, task_sizes=sizes)
    embedder = Embedder(model, settings)
    with pytest.raises(InvalidRequest, match="the output REGIONS needs size 32, not 64"):
        await embedder.embed(ANYBODY, png(), REGIONS, 64)
    await embedder.close()


async def test_everything_reads_the_regions(caller, asked):
    request = pb.SegmentEverythingRequest(image=pb.Image(encoded=png(55)))
    first = await caller("SegmentEverything", request)
    count = len(asked)
    assert count
    assert await caller("SegmentEverything", request) != first  # it is cached now
    named = pb.SegmentEverythingRequest(image=pb.Image(encoded=png(55)), labels=["a", "b"])
    second = await caller("SegmentEverything", named)
    assert len(asked) == count
    assert [mask.area for mask in second.masks] == [mask.area for mask in first.masks]
