"""The services and all adapters answer with checkpoints that ``samclip convert`` has made.

The tests of the adapters compare their answers with those of the service's own API.
"""

# ruff: noqa: F401, F811 - pytest finds tests and fixtures that are imported

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import KeyUnknown
from samclip_core.model import SamClip
from services.request import http
from services.request.context import RequestContext
from services.request.routes import ROUTES
from services.request.rpc import Answers, Service
from services.settings import Settings
from tests.converted import make_converted
from tests.in_process import Caller, png
from tests.unit.services.gateway.adapters.conftest import adapters, applications, photo
from tests.unit.services.gateway.adapters.test_label_studio import expected as brush
from tests.unit.services.gateway.adapters.test_label_studio import (
    test_requests_as_label_studio_sends_them,
    test_words_choose_and_find,
)
from tests.unit.services.gateway.adapters.test_mcp import answer as tool
from tests.unit.services.gateway.adapters.test_mcp import inside
from tests.unit.services.gateway.adapters.test_open_inference import (
    expected,
    inputs,
    stub,
    test_both_ways_give_the_answers_of_our_own_api,
)
from tests.unit.services.gateway.adapters.test_openai import (
    info,
    model,
    model_id,
    test_texts_and_images_have_the_vectors_of_embed,
)
from tests.unit.services.gateway.adapters.test_x_anylabeling import (
    test_marks_give_the_polygons_of_our_own_api,
)
from tests.unit.services.test_local import IMAGE, LABELS, REQUESTS, rpc_of


@pytest.fixture(scope="module", params=["radio", "mobile", "radio beside mobile"])
def tiny_checkpoint(request: pytest.FixtureRequest, data_root: Path, tmp_path_factory) -> Path:
    return make_converted(
        request.param, data_root, tmp_path_factory.mktemp(request.param) / request.param
    )


@pytest.fixture(scope="module")
def tiny_model(tiny_checkpoint: Path) -> SamClip:
    return SamClip.load(tiny_checkpoint)


async def test_every_head_answers(tiny_checkpoint: Path, caller: Caller) -> None:
    for request in REQUESTS:
        if isinstance(request, pb.SegmentRequest) and request.prompts[0].HasField("mask_input"):
            continue  # its logits are those of another frame
        answer = await caller(rpc_of(request), request)
        assert answer.model.name == tiny_checkpoint.name
        contents = {descriptor.name for descriptor, _ in answer.ListFields()}
        assert contents - {"model", "image"}, request


async def test_an_earlier_mask_is_a_prompt(caller: Caller) -> None:
    prompt = pb.Prompt(points=[pb.Point(x=20, y=15)])
    request = pb.SegmentRequest(image=IMAGE, prompts=[prompt], encoding=pb.LOGITS)
    (first,) = (await caller("Segment", request)).results[0].masks
    request.prompts[0].mask_input.CopyFrom(first.logits)
    (second,) = (await caller("Segment", request)).results[0].masks
    assert second.logits.shape == first.logits.shape
    assert second.logits.data != first.logits.data


async def test_a_collection_finds_its_pictures(caller: Caller) -> None:
    items = [pb.IndexItem(id=str(red), image=pb.Image(encoded=png(red))) for red in (0, 255)]
    assert (await caller("Index", pb.IndexRequest(collection="it", items=items))).indexed == 2
    picture = pb.SearchRequest(collection="it", image=items[1].image, top_k=2)
    hits = (await caller("Search", picture)).hits
    assert (hits[0].id, hits[0].score) == ("255", pytest.approx(1, abs=1e-3))
    text = pb.SearchRequest(collection="it", text="a dog", top_k=2)
    assert {hit.id for hit in (await caller("Search", text)).hits} == {"0", "255"}


async def test_every_tool_of_an_assistant(caller: Caller, photo: bytes) -> None:
    image, labels = base64.b64encode(photo).decode(), ["a dog", "a cat"]
    encoded, prompt = pb.Image(encoded=photo), pb.Prompt(points=[pb.Point(x=10, y=12)])
    async with inside(f"127.0.0.1:{caller.port}") as client:
        scores = (await tool(client, "classify", image=image, labels=labels))["scores"]
        classify = pb.ClassifyRequest(images=[encoded], labels=labels)
        expected = (await caller("Classify", classify)).results[0].scores
        assert [one["label"] for one in scores] == [one.label for one in expected]
        (one,) = (await tool(client, "segment", image=image, points=[[10, 12]]))["objects"]
        segment = pb.SegmentRequest(image=encoded, prompts=[prompt])
        (mask,) = (await caller("Segment", segment)).results[0].masks
        assert one["area"] == mask.area
        found = (await tool(client, "find", image=image, texts=labels))["objects"]
        segment = pb.SegmentRequest(image=encoded, prompts=[pb.Prompt(text=x) for x in labels])
        results = (await caller("Segment", segment)).results
        masks = [mask.area for result in results for mask in result.masks]
        assert sorted(one["area"] for one in found) == sorted(masks)


class Forward(Service):
    """Any application, behind its HTTP interface: asks the services that run."""

    name = "Forward"

    def __init__(self, caller: Caller):
        super().__init__(Settings())
        self._caller = caller

    async def answer(self, method: str, request: Any, context: RequestContext) -> Any:
        try:
            return await self._caller(method, request)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.FAILED_PRECONDITION:
                raise
            raise KeyUnknown(error.details() or "") from error

    async def answers(self, method: str, request: Any, context: RequestContext) -> Answers:
        async for message in self._caller.stream(method, request):
            yield message


@pytest.fixture
async def post(caller: Caller, photo: bytes) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """Return a function that sends forms as the playground does, and reads their answers."""
    app = http.new_app()
    for name in ROUTES:
        app.routes.extend(http.application(name, Forward(caller)).routes)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

        async def send(path: str, **fields: Any) -> Any:
            parts: list[Any] = []
            for name, value in fields.items():
                for one in value if value in (LABELS, LABELS[1:]) else [value]:
                    sent = one if isinstance(one, str | bytes) else json.dumps(one)
                    parts.append((name, ("photo.png" if isinstance(one, bytes) else None, sent)))
            accepted = "application/x-ndjson" if path == "/everything" else "application/json"
            reply = await client.post(path, files=parts, headers={"accept": accepted})
            if reply.status_code == 409:  # the key is of another side of the frame
                return await send(path, **{**fields, "image": photo})
            assert reply.status_code == 200, reply.text
            lines = [json.loads(line) for line in reply.text.splitlines()]
            return lines if path == "/everything" else lines[0]

        yield send


async def test_the_requests_of_the_playground(
    post: Callable[..., Awaitable[Any]], caller: Caller, photo: bytes
) -> None:
    prompts = [{"points": [{"x": 20, "y": 15}]}]
    answer = await post("/segment", image=photo, prompts=prompts, multimask=True)
    key, masks = answer["image"]["key"], answer["results"][0]["masks"]
    prompt = pb.Prompt(points=[pb.Point(x=20, y=15)])
    request = pb.SegmentRequest(image=pb.Image(encoded=photo), prompts=[prompt], multimask=True)
    expected = (await caller("Segment", request)).results[0].masks
    assert [m["rle"]["counts"].encode() for m in masks] == [m.rle.counts for m in expected]
    items: list[dict[str, Any]] = [
        {"id": "photo", "image": {"key": key}, "metadata": {"name": "photo"}}
    ]
    (error,) = (await post("/index", collection="it", items=items))["errors"]
    assert error["message"].endswith("send the image")  # the key is of masks, and of another side
    items[0]["image"] = base64.b64encode(photo).decode()
    assert (await post("/index", collection="it", items=items))["indexed"] == 1
    asked, areas = {"image": key, "labels": LABELS}, [{"rle": masks[0]["rle"]}]
    whole = (await post("/classify", **asked))["results"]
    (part,) = (await post("/classify", **asked, areas=areas))["results"]
    for scores in (whole, part["scores"]):
        assert {score["label"] for score in scores} == {*LABELS}
    found = await post("/segment", image=key, prompts=[{"text": label} for label in LABELS])
    assert len(found["results"]) == len(LABELS)
    assert (await post("/semantic", **asked, refine=True, background=False))["regions"]
    heat = await post("/explain", image=key, label=LABELS[0], others=LABELS[1:])
    assert heat["low"] < heat["high"]
    lines = await post("/everything", **asked)
    assert (lines[-1]["progress"], any(line["found"] for line in lines)) == (1, True)
    for fields in ({"text": "a cat"}, {"image": key, "area": areas[0]}, {"id": "photo"}):
        hits = (await post("/search", collection="it", top_k=12, **fields))["hits"]
        assert [hit["id"] for hit in hits] == ([] if "id" in fields else ["photo"])
