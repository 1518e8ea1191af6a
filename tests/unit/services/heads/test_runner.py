"""Pictures in tiles are decoded once per request; what was begun is finished first."""

import asyncio
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest
from samclip.v1 import samclip_pb2 as pb

from samclip_core import SamClip
from samclip_core.io import image
from services.backbone.app import Backbone
from services.batching.priority import Priority
from services.batching.queue import Queue
from services.batching.threads import Places
from services.heads import runner
from services.heads.segmentation.app import Segmentation
from services.heads.semantic.app import Semantic
from services.local import Direct
from services.request.context import Caller, RequestContext
from services.settings import Settings
from tests.unit.services.test_tenants import LABELS, large


@pytest.mark.parametrize("kept_bytes", [2**26, 0])
async def test_a_picture_is_decoded_once_per_request(
    settings: Settings, tiny_model: SamClip, cold: None, monkeypatch, kept_bytes: int
) -> None:
    """Also if another tenant has sent it before, and if its tiles are kept no more."""
    caches = {"cache_bytes": kept_bytes, "head_cache_bytes": kept_bytes}
    settings = settings.model_copy(update=caches)
    backbone = Backbone(settings, tiny_model)
    head = Semantic(settings, peer=Direct(backbone), sam_head=tiny_model.sam_head)
    decoded = list[bytes]()

    def decode(encoded: bytes, limits: Any) -> Any:
        decoded.append(encoded)
        return image.decode(encoded, limits)

    ours = SimpleNamespace(decode=decode, encode_png=image.encode_png)
    monkeypatch.setattr(runner, "pixels", ours)
    request = pb.SegmentTextRequest(image=large(0), labels=LABELS, tiles=2)
    counts = []
    for tenant in ("ann", "bob", "ann"):
        decoded.clear()
        caller = Caller(tenant, tenant, frozenset({"read"}))
        context = RequestContext(caller=caller, priority=Priority(tenant=tenant))
        await head.answer("SegmentText", request, context)
        counts.append(len(decoded))
    assert counts == ([1, 1, 0] if kept_bytes else [1, 1, 1])
    await head.close()
    await backbone.close()


async def test_few_requests_hold_tiles_as_files(
    settings: Settings, tiny_model: SamClip, cold: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All held theirs while they waited for the backbone: 44 MB each for a file of 4 MB."""
    backbone = Backbone(settings, tiny_model)
    head = Semantic(settings, peer=Direct(backbone), sam_head=tiny_model.sam_head)
    head.tiled = Places("tiled", 2)
    begun, cut, go = list[str](), list[Any](), asyncio.Event()
    encode, make = head.encode, runner.Runner._cut

    async def encoded(context: RequestContext, image: pb.Image, *asked: Any) -> Any:
        if any(one.crops for one in asked):
            await go.wait()
        answer = await encode(context, image, *asked)
        begun.append(answer[0].key)
        return answer

    async def noted(self: Any, names: Any) -> Any:
        cut.append(names)
        return await make(self, names)

    monkeypatch.setattr(head, "encode", encoded)
    monkeypatch.setattr(runner.Runner, "_cut", noted)
    async with asyncio.TaskGroup() as tasks:
        for number in range(5):
            request = pb.SegmentTextRequest(image=large(number), labels=LABELS, tiles=2)
            tasks.create_task(head.answer("SegmentText", request, RequestContext()))
        while len(begun) < 5 or len(cut) < 2:
            await asyncio.sleep(0.01)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(cut) == 2
        go.set()
    assert len(cut) == 5
    await head.close()
    await backbone.close()


async def test_a_stream_that_nobody_reads_leaves_the_place_of_its_tiles_to_others(
    settings: Settings, tiny_model: SamClip, cold: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four of one tenant made all others wait until their deadline."""
    monkeypatch.setattr(runner, "STALLED_S", 0.01)
    backbone = Backbone(settings, tiny_model)
    head = Segmentation(settings, sam_head=tiny_model.sam_head)
    head._peer, head.tiled = Direct(backbone), Places("tiled", 1)
    request = pb.SegmentEverythingRequest(image=large(0), tiles=2, points_per_side=3)
    unread = aiter(head.StreamEverything(request, RequestContext()))
    cut, updates = runner.Runner._cut, list[pb.EverythingUpdate]()
    noted = AsyncMock(side_effect=cut)
    monkeypatch.setattr(runner.Runner, "_cut", lambda *given: noted(*given))
    while not noted.called:
        updates.append(await anext(unread))
    request.image.CopyFrom(large(1))
    async with asyncio.timeout(60):
        await head.answer("SegmentEverything", request, RequestContext())
    updates += [update async for update in unread]
    assert updates[-1].progress == pytest.approx(1)
    await head.close()
    await backbone.close()


async def test_the_later_parts_of_an_answer_count_as_begun(
    settings: Settings, tiny_model: SamClip, cold: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a search waits behind all new requests after each of its rounds."""
    backbone = Backbone(settings, tiny_model)
    head = Segmentation(settings, sam_head=tiny_model.sam_head)
    head._peer = Direct(backbone)
    begun, submit = list[bool](), Queue.submit

    async def noted(queue: Any, item: Any, priority: Priority, *rest: float, **given: float) -> Any:
        if queue._part == "bulk_search":
            begun.append(given.get("begun", 0.0) > 0)
        return await submit(queue, item, priority, *rest, **given)

    monkeypatch.setattr(Queue, "submit", noted)
    request = pb.SegmentEverythingRequest(image=large(0), tiles=2, points_per_side=3)
    await head.answer("SegmentEverything", request, RequestContext())
    assert begun[0] is False
    assert len(begun) > 1
    assert all(begun[1:])
    await head.close()
    await backbone.close()
