"""Tenants take turns on every route: one with many requests delays another's by a few at most.

What each route waits for is held until all requests have come. Then those of the greedy tenant that
are answered before the modest one's are counted, so that no clock decides.
"""

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pkgutil import resolve_name
from typing import Any

import httpx
import numpy as np
import pytest
from google.protobuf.message import Message
from samclip.v1 import samclip_pb2 as pb

from samclip_core import SamClip
from samclip_core.io.image import encode_png
from services.backbone.app import Backbone
from services.heads.classification.app import Classification
from services.heads.own.app import of
from services.heads.segmentation.app import Segmentation
from services.heads.semantic.app import Semantic
from services.local import Direct
from services.request import http
from services.request.context import KEY, SCOPES, TENANT, RequestContext
from services.request.rpc import Service
from services.retrieval.app import Retrieval
from services.settings import Settings
from tests.in_process import ADMITTED, png

MANY = 12
"""Requests of the greedy tenant, more than any route has places for."""
SHARE = 5
"""Most of them that may be answered first: those that have places already, and those in turn."""
CALLERS = {
    tenant: {KEY: tenant, TENANT: tenant, SCOPES: "read,index"} for tenant in ("greedy", "modest")
}
NUMBERS = itertools.count()
Ask = Callable[[str], Awaitable[Any]]
"""Sends one request of a tenant, and returns its answer."""


def large(number: int) -> pb.Image:
    """Return a picture of its own for each number, which has tiles."""
    pixels_HW3 = np.random.default_rng(number).integers(0, 255, (160, 200, 3), np.uint8)
    return pb.Image(encoded=encode_png(pixels_HW3))


def indexed(number: int) -> pb.IndexRequest:
    item = pb.IndexItem(id=str(number), image=large(number))
    return pb.IndexRequest(collection="all", items=[item], objects=True, tiles=2)


SMALL = pb.Image(encoded=png())
LABELS = ["dog", "grass"]
KINDS: dict[str, type[Service]] = {
    "SegmentText": Semantic,
    "Explain": Semantic,
    "Classify": Classification,
    "Segment": Segmentation,
    "SegmentEverything": Segmentation,
    "Index": Retrieval,
    "Ask": of("faulty", "tests.own_heads:Faulty"),
    "Embed": Backbone,
}
ROUTES: dict[str, tuple[str, str, Callable[[int], Message]]] = {
    "maps": (
        "SegmentText",
        "services.heads.semantic.app.masks.encode_label_map",
        lambda _: pb.SegmentTextRequest(image=SMALL, labels=LABELS),
    ),
    "heat maps": (
        "Explain",
        "services.heads.semantic.app.masks.write_png",
        lambda _: pb.ExplainRequest(image=SMALL, label="dog"),
    ),
    "own heads": (
        "Ask",
        "tests.own_heads.Faulty.answer",
        lambda _: pb.AskRequest(image=SMALL),
    ),
    "parameters of own heads": (
        "Ask",
        "services.heads.own.parameters.Parameters.read",
        lambda _: pb.AskRequest(image=SMALL),
    ),
    "maps in tiles": (
        "SegmentText",
        "services.heads.runner._part",
        lambda number: pb.SegmentTextRequest(image=large(number), labels=LABELS, tiles=2),
    ),
    "everything in tiles": (
        "SegmentEverything",
        "services.heads.runner._part",
        lambda number: pb.SegmentEverythingRequest(image=large(number), tiles=2),
    ),
    "everything's search": (
        "SegmentEverything",
        "samclip_core.answers.sam_head.SamHead.decode_batch",
        lambda number: pb.SegmentEverythingRequest(image=large(number), tiles=2),
    ),
    "masks": (
        "Segment",
        "services.heads.segmentation.app.wire.to_placed",
        lambda _: pb.SegmentRequest(
            image=SMALL,
            prompts=[pb.Prompt(points=[pb.Point(x=n % 40, y=9)] * 9) for n in range(99)],
        ),
    ),
    "index in tiles": ("Index", "services.heads.runner._part", indexed),
    "scores": (
        "Classify",
        "services.request.wire.to_scores",
        lambda _: pb.ClassifyRequest(images=[SMALL], labels=LABELS),
    ),
    "embeddings": (
        "Embed",
        "services.backbone.embedder.image.decode",
        lambda number: pb.EmbedRequest(image=large(number), outputs=[pb.CLIP_POOLED], inline=True),
    ),
}


@pytest.fixture
async def asking(settings: Settings, tiny_model: SamClip, cold: None) -> AsyncIterator[Any]:
    """Return a function that opens a route."""
    settings = settings.model_copy(update={"request_timeout_s": 600.0})
    backbone = Backbone(settings, tiny_model)
    async with AsyncExitStack() as opened:
        opened.push_async_callback(backbone.close)

        def asking(rpc: str, request: Callable[[int], Message]) -> Ask:
            service: Any = backbone
            if KINDS[rpc] is not Backbone:
                given: Any = {} if rpc == "Index" else {"sam_head": tiny_model.sam_head}
                service = KINDS[rpc](settings, **given)
                service._peer = Direct(backbone)
                opened.push_async_callback(service.close)

            async def ask(tenant: str) -> Any:
                context = RequestContext.read(CALLERS[tenant], settings)
                return await service.answer(rpc, request(next(NUMBERS)), context)

            return ask

        yield asking


async def before(monkeypatch: pytest.MonkeyPatch, held: str, ask: Ask) -> int:
    """Return how many requests of the greedy tenant are answered before the modest one's."""
    await ask("greedy")  # what is kept of the first request costs no later one
    await ask("modest")
    gate, answered = threading.Event(), list[str]()
    owner, _, name = held.rpartition(".")
    real = getattr(resolve_name(owner), name)

    def hold(*args: Any, **given: Any) -> Any:
        gate.wait(60)
        return real(*args, **given)

    monkeypatch.setattr(held, hold)

    async def send(tenant: str) -> None:
        await ask(tenant)
        answered.append(tenant)

    sent = [asyncio.create_task(send("greedy")) for _ in range(MANY)]
    await asyncio.sleep(0.3)
    sent.append(asyncio.create_task(send("modest")))
    await asyncio.sleep(0.3)
    gate.set()
    await asyncio.gather(*sent)
    return answered.index("modest")


@pytest.mark.parametrize("route", ROUTES)
async def test_a_greedy_tenant_leaves_a_modest_one_its_share(
    asking: Any, monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    rpc, held, request = ROUTES[route]
    assert await before(monkeypatch, held, asking(rpc, request)) <= SHARE


class Callee(Service):
    name = "Callee"

    async def answer(self, method: str, request: Message, context: RequestContext) -> Message:
        return pb.ClassifyResponse(results=[pb.ClassifyResult(image=pb.ImageInfo(key="k" * 2**19))])


@pytest.mark.parametrize("held", ["bodies.parse", "_render"])
async def test_large_bodies_and_replies_of_tenants_take_turns(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    transport = httpx.ASGITransport(http.application("classification", Callee(settings)))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as door:

        async def ask(tenant: str) -> None:
            body = {"images": [], "labels": ["a"]}
            headers = {**dict(ADMITTED), **CALLERS[tenant]}
            reply = await door.post("/classify", json=body, headers=headers)
            assert reply.status_code == 200

        assert await before(monkeypatch, f"services.request.http.{held}", ask) <= SHARE
