"""What all adapters share: several images at once, and replies made off the event loop."""

import asyncio
import base64
from collections.abc import MutableMapping
from typing import Any

import httpx
import numpy as np
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import InvalidRequest
from services.gateway.adapters.adapter import Applications
from services.gateway.adapters.label_studio.routes import Control, to_results
from services.gateway.adapters.x_anylabeling.routes import to_shapes
from services.gateway.app import add_adapters
from services.request import http, wire
from services.request.fan_out import IMAGES_AT_ONCE, each
from services.request.limits import Reply
from tests.unit.services.gateway.adapters.conftest import READY, uri


async def test_the_first_error_stops_the_work_on_other_images() -> None:
    running: set[int] = set()
    most = 0

    async def work(image: int) -> None:
        nonlocal most
        running.add(image)
        most = max(most, len(running))
        try:
            if image == 3:
                raise InvalidRequest("no image")
            await asyncio.sleep(60)
        finally:
            running.remove(image)

    with pytest.raises(InvalidRequest, match=r"^image 3: no image$"):
        await each(work, range(100))
    assert not running
    assert most <= IMAGES_AT_ONCE


async def test_the_answers_are_in_the_order_of_the_images() -> None:
    async def work(image: int) -> int:
        await asyncio.sleep(0.001 * (image % 3))
        return image

    assert await each(work, range(40)) == [*range(40)]


def counted() -> dict[tuple[str, str, str], float]:
    return {
        (one.labels["service"], one.labels["rpc"], one.labels["code"]): one.value
        for metric in REGISTRY.collect()
        for one in metric.samples
        if one.name == "samclip_requests_total"
    }


async def test_a_call_from_outside_counts_once_as_the_adapters(
    adapters: httpx.AsyncClient, photo: bytes
) -> None:
    """What heads ask of the backbone counts as its own, as for all calls."""
    file = base64.b64encode(photo).decode()
    model = (await adapters.get("/v1/models")).json()["data"][0]["id"]
    several = [uri(photo), "a cat", "a dog"]
    image = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [file]}
    labels = {"name": "labels", "shape": [2], "datatype": "BYTES", "data": ["a cat", "a dog"]}
    calls = [
        ("OpenAI", "embeddings", "/v1/embeddings", {"model": model, "input": several}, 200),
        ("OpenAI", "embeddings", "/v1/embeddings", {"model": model, "input": [""]}, 400),
        ("OpenInference", "infer", "/v2/models/classify/infer", {"inputs": [image, labels]}, 200),
    ]
    for service, rpc, path, body, status in calls:
        before = counted()
        assert (await adapters.post(path, json=body)).status_code == status
        added = {name: n - before.get(name, 0) for name, n in counted().items()}
        if rpc == "infer":
            added = {name: n for name, n in added.items() if name[0] != "BackboneService"}
        code = "OK" if status == 200 else "INVALID_ARGUMENT"
        assert {name: n for name, n in added.items() if n} == {(service, rpc, code): 1}


async def test_a_trace_goes_on_from_the_adapter_to_the_applications(
    adapters: httpx.AsyncClient, photo: bytes, exported: InMemorySpanExporter
) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    sent = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    model = (await adapters.get("/v1/models")).json()["data"][0]["id"]
    exported.clear()
    body = {"model": model, "input": [uri(photo)]}
    assert (await adapters.post("/v1/embeddings", json=body, headers=sent)).is_success
    spans = {span.name: span for span in exported.get_finished_spans()}
    embed, call = spans["BackboneService/Embed"], spans["backbone"]
    assert (embed.parent.span_id, embed.context.trace_id) == (call.context.span_id, int(trace, 16))
    assert call.parent.span_id == spans["OpenAI/embeddings"].context.span_id


@pytest.mark.parametrize(
    ("method", "path", "offered"),
    [
        ("POST", "/v1/chat/completions", "POST /v1/embeddings, GET /v1/models"),
        ("GET", "/v1/embeddings", "POST /v1/embeddings, GET /v1/models"),
        ("DELETE", "/v1/", "POST /v1/embeddings, GET /v1/models"),
        ("POST", "/v2/repository/models/x/load", "GET /v2, POST /v2/repository/index"),
        ("GET", "/v2/", "GET /v2, POST /v2/repository/index"),
    ],
)
async def test_other_paths_are_refused_in_the_protocols_shape(
    adapters: httpx.AsyncClient, method: str, path: str, offered: str
) -> None:
    reply = await adapters.request(method, path)
    error = reply.json()["error"]
    message = error["message"] if path.startswith("/v1") else error
    assert reply.status_code == 404
    assert message.startswith(f"{method} {path} is not offered: use {offered}")


def test_outlines_of_a_mask_have_no_holes_and_no_specks() -> None:
    """Annotators get one shape for each outline, and would have to delete those by hand."""
    y, x = np.mgrid[:60, :80]
    ring_HW = ((x - 30) ** 2 + (y - 30) ** 2 < 400) & ((x - 30) ** 2 + (y - 30) ** 2 > 25)
    mask_HW = ring_HW | (x > 70) & (y > 20) & (y < 40)
    mask_HW[2, 2] = True
    mask = wire.to_mask(mask_HW, pb.POLYGONS)
    assert len(mask.polygons.polygons) == 4
    result, sides = pb.PromptResult(masks=[mask], things=[0]), pb.ImageInfo(width=80, height=60)
    shapes = to_shapes([pb.Prompt(text="a wheel")], [result], 0, Reply())
    regions = to_results(
        Control("PolygonLabels", "ring", "photo", ()), "wheel", mask, sides, Reply()
    )
    for outlines in (
        [np.array(shape["points"][:-1]) for shape in shapes],
        [np.array(region["value"]["points"]) * (0.8, 0.6) for region in regions],
    ):
        corners = [(*ring_N2.min(0), *ring_N2.max(0)) for ring_N2 in outlines]
        np.testing.assert_allclose(corners, [(11, 11, 50, 50), (71, 21, 80, 40)], atol=1e-3)


@pytest.mark.parametrize("kind", ["RectangleLabels", "PolygonLabels", "BrushLabels"])
def test_names_that_each_part_of_a_mask_repeats_count_in_the_answer(kind: str) -> None:
    mask_HW = np.indices((60, 80)).sum(0) % 2 > 0
    encoding = pb.POLYGONS if kind == "PolygonLabels" else pb.RLE
    mask, sides = wire.to_mask(mask_HW, encoding), pb.ImageInfo(width=80, height=60)
    control, long = Control(kind, "name", "photo", ()), "\x01" * 15_000_000
    with pytest.raises(InvalidRequest, match="at most 83,886,080"):
        to_results(control, long, mask, sides, Reply())


def test_a_phrase_that_each_part_of_a_mask_repeats_counts_in_the_answer() -> None:
    mask = wire.to_mask(np.indices((40, 40)).sum(0) % 2 > 0, pb.POLYGONS)
    results = [pb.PromptResult(masks=[mask], things=[0])]
    assert mask.ByteSize() < 1_000_000
    assert len(to_shapes([pb.Prompt(text="a cat")], results, 0, Reply())) == 800
    with pytest.raises(InvalidRequest, match="at most 83,886,080"):
        to_shapes([pb.Prompt(text="\x01" * 20_000)], results, 0, Reply())


async def test_a_place_is_held_until_the_reply_is_taken(applications: Applications) -> None:
    app = http.new_app()
    add_adapters(app, applications, READY)
    blocked, end = asyncio.Event(), asyncio.Event()
    path = {"path": "/v2", "root_path": "", "query_string": b""}
    scope = {"type": "http", "method": "GET", "headers": [], **path}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(event: MutableMapping[str, Any]) -> None:
        if event.get("body"):
            blocked.set()
            await end.wait()

    task = asyncio.create_task(app(scope, receive, send))
    await blocked.wait()
    assert applications.places.number == 1
    end.set()
    await task
    assert applications.places.number == 0
