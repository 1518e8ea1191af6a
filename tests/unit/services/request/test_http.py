"""The HTTP interface of an application, called without a socket."""

import asyncio
import base64
import io
import json
import threading
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

import httpx
import numpy as np
import pytest
from google.protobuf.message import Message
from PIL import Image
from samclip.v1 import samclip_pb2 as pb
from starlette.types import ASGIApp

from samclip_core.errors import KeyUnknown, Overloaded, Unavailable
from samclip_core.io.masks import encode_label_map, write_png
from services.batching.priority import TIMEOUT
from services.batching.threads import Threads
from services.observability import metrics
from services.request import bodies, calls, http, messages, transit
from services.request.context import RequestContext
from services.request.rpc import Answers, Service
from services.request.transit import Budget, Pace
from services.settings import Settings
from tests.shown import shown

SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/classify",
    "query_string": b"",
    "root_path": "",
    "headers": [(b"content-type", b"application/json")],
}
JSON = {"labels": ["a"], "image": base64.b64encode(b"photo").decode()}
BODY = json.dumps(JSON).encode()


class Callee(Service):
    """A service that returns a given answer and records its requests."""

    name = "Callee"

    def __init__(self, reply: Message | Exception):
        super().__init__(Settings(max_request_bytes=10_000))
        self.reply = reply
        self.asked: list[tuple[str, Any, RequestContext]] = []

    async def answer(self, method: str, request: Message, context: RequestContext) -> Message:
        self.asked.append((method, request, context))
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply

    async def answers(self, method: str, request: Message, context: RequestContext) -> Answers:
        self.asked.append((method, request, context))
        yield pb.EverythingUpdate(progress=0.5, image=pb.ImageInfo(key="k"))
        if isinstance(self.reply, Exception):
            raise self.reply
        yield pb.EverythingUpdate(progress=1, withdrawn=[3])

    async def health(self) -> dict[str, Any]:
        if isinstance(self.reply, Unavailable):
            raise self.reply
        return {"cache": "warm"}


def client(name: str, callee: Callee) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(http.application(name, callee))
    headers = {"x-request-id": "id-1"}
    return httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers)


def count(rpc: str, code: str) -> float:
    return shown(metrics.REQUESTS.labels("Callee", rpc, code))


def events(body: bytes, piece: int) -> list[dict[str, Any]]:
    """Return the events in which a body arrives."""
    pieces = [body[at : at + piece] for at in range(0, len(body), piece)]
    return [
        {"type": "http.request", "body": part, "more_body": part is not pieces[-1]}
        for part in pieces
    ]


async def status_of(app: ASGIApp, arriving: list[dict[str, Any]]) -> int:
    """POST /classify with these events (httpx would send two), and return the status."""
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return arriving.pop(0)

    async def send(event: MutableMapping[str, Any]) -> None:
        sent.append(event)

    await app(SCOPE, receive, send)
    return int(sent[0]["status"])


CLASSIFIED = pb.ClassifyResponse(
    results=[pb.ClassifyResult(image=pb.ImageInfo(key="k"), scores=[pb.Score(label="a", score=1)])],
    model=pb.ModelInfo(name="edge"),
)


async def test_one_image_has_a_flat_reply_and_several_or_areas_have_grpcs() -> None:
    callee = Callee(CLASSIFIED)
    async with client("classification", callee) as door:
        flat = (await door.post("/classify", json=JSON)).json()
        several = (await door.post("/classify", json={"images": [JSON["image"]]})).json()
        areas = (await door.post("/classify", json={**JSON, "areas": [[0, 0, 9, 9]]})).json()
    score = {"label": "a", "score": 1.0, "similarity": 0.0}
    assert flat["image"]["key"] == "k"
    assert flat["results"] == [score]
    assert flat["model"]["name"] == "edge"
    assert several["results"][0]["scores"] == areas["results"][0]["scores"] == [score]
    method, message, context = callee.asked[0]
    assert (method, context.id) == ("Classify", "id-1")
    assert message == pb.ClassifyRequest(images=[pb.Image(encoded=b"photo")], labels=["a"])


@pytest.mark.parametrize(
    ("path", "body", "request_"),
    [
        ("/embed", {"image": JSON["image"]}, pb.EmbedRequest(image=pb.Image(encoded=b"photo"))),
        ("/embed-text", {"texts": ["a"]}, pb.EmbedTextRequest(texts=["a"])),
        ("/embed", {"texts": ["a"]}, pb.EmbedTextRequest(texts=["a"])),
        (
            "/embed",
            {"model": "edge", "texts": ["a"]},
            pb.EmbedTextRequest(texts=["a"], model="edge"),
        ),
        (
            "/embed",
            {"texts": ["a"], "image": JSON["image"]},
            pb.EmbedRequest(image=pb.Image(encoded=b"photo"), texts=["a"]),
        ),
    ],
)
async def test_texts_are_embedded_at_a_path_of_their_own_and_at_that_of_images(
    path: str, body: dict[str, Any], request_: Message
) -> None:
    callee = Callee(pb.EmbedResponse())
    async with client("backbone", callee) as door:
        assert (await door.post(path, json=body)).is_success
    ((method, message, _),) = callee.asked
    assert message == request_
    assert f"{method}Request" == type(message).__name__


async def test_the_path_of_images_refuses_fields_that_it_does_not_know() -> None:
    async with client("backbone", Callee(pb.EmbedResponse())) as door:
        reply = await door.post("/embed", json={"texts": [], "colour": 1})
        assert reply.status_code == 400
        assert "the fields are image, outputs" in reply.json()["detail"]


MAP = np.arange(12, dtype=np.float16).reshape(3, 2, 2)
EMBEDDED = pb.EmbedResponse(
    image=pb.ImageInfo(key="ab", width=40, height=30),
    tensors=[pb.Tensor(name="SAM", dtype="float16", shape=MAP.shape, data=MAP.tobytes())],
    model=pb.ModelInfo(digest="cd", image_size=64),
)


async def test_one_embedding_comes_as_bytes_with_its_shape_and_geometry() -> None:
    callee, fields = Callee(EMBEDDED), {"image": JSON["image"], "outputs": ["SAM"]}
    async with client("backbone", callee) as door:
        accept = {"accept": "application/octet-stream"}
        reply = await door.post("/embed", json=fields, headers=accept)
        assert reply.content == MAP.tobytes()
        assert json.loads(reply.headers["x-samclip-shape"]) == [3, 2, 2]
        geometry = {"height": 30, "width": 40, "size": 64, "squash": False}
        assert json.loads(reply.headers["x-samclip-geometry"]) == geometry
        assert (reply.headers["etag"], reply.headers["x-samclip-model"]) == ('"ab"', "cd")
        for wrong in ([], ["SAM", "CLIP_POOLED"], ["REGIONS"], ["CLIP_POOLED"]):
            reply = await door.post("/embed", json=fields | {"outputs": wrong}, headers=accept)
            assert reply.status_code == 400
            assert "send outputs=SAM" in reply.json()["detail"]
        reply = await door.post("/embed", json=fields | {"texts": ["a"]}, headers=accept)
        assert reply.status_code == 400
    assert [request.inline for _, request, _ in callee.asked] == [True]  # the others cost nothing


LABEL_MAP = encode_label_map(np.array([[0, 1], [-1, -1], [0, 0]]), 2)
HEAT = write_png(np.array([[0, 255], [7, 7], [0, 0]], np.uint8))


@pytest.mark.parametrize(
    ("path", "fields", "answer", "field"),
    [
        (
            "/semantic",
            {"labels": ["a", "b"]},
            pb.SegmentTextResponse(label_map_png=LABEL_MAP),
            "label_map_png",
        ),
        (
            "/explain",
            {"label": "a", "others": ["b"]},
            pb.ExplainResponse(heat_png=HEAT, low=0.25, high=0.5),
            "heat_png",
        ),
    ],
)
async def test_maps_are_json_or_a_picture(
    path: str, fields: dict[str, Any], answer: Message, field: str
) -> None:
    body = {"image": {"key": "k"}, **fields}
    async with client("semantic", Callee(answer)) as door:
        plain = await door.post(path, json=body)
        picture = await door.post(path, json=body, headers={"accept": "image/png"})
    assert plain.headers["content-type"] == "application/json"
    assert base64.b64decode(plain.json()[field]) == getattr(answer, field)
    assert picture.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(picture.content)).size == (2, 3)


@pytest.mark.parametrize(
    ("error", "status", "detail", "retry_after"),
    [
        (KeyUnknown("send the image"), 409, "send the image", None),
        (Overloaded("come back later"), 429, "come back later", "1"),
        (ValueError("a secret of the server"), 500, "internal error; request id id-1", None),
    ],
)
async def test_errors_are_problems(
    error: Exception, status: int, detail: str, retry_after: str | None
) -> None:
    async with client("classification", Callee(error)) as door:
        reply = await door.post("/classify", json=JSON)
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers.get("retry-after") == retry_after
    problem = reply.json()
    assert (reply.status_code, problem["status"], problem["detail"]) == (status, status, detail)
    assert problem["request_id"] == "id-1"
    assert problem["type"] == "about:blank"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/classify", 405), ("POST", "/nowhere", 404), ("POST", "/classify/", 404)],
)
async def test_paths_that_are_not_there_are_problems(method: str, path: str, status: int) -> None:
    async with client("classification", Callee(CLASSIFIED)) as door:
        reply = await door.request(method, path)
    assert reply.status_code == reply.json()["status"] == status
    assert reply.headers["content-type"] == "application/problem+json"
    assert f"{method} {path} is not a route here" in reply.json()["detail"]
    assert reply.headers.get("allow") == ("POST" if status == 405 else None)


async def test_a_body_above_the_limit_is_413_and_of_another_type_415() -> None:
    callee = Callee(CLASSIFIED)
    async with client("classification", callee) as door:
        large = await door.post("/classify", files={"image": b"x" * 20_000})
        other = await door.post("/classify", content=b"x", headers={"content-type": "image/jpeg"})
    assert (large.status_code, other.status_code) == (413, 415)
    assert not callee.asked


async def test_a_body_that_does_not_arrive_is_408() -> None:
    callee = Callee(CLASSIFIED)
    app = http.application("classification", callee, pace=Pace(most_s=0.1))

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as door:
        reply = await door.post("http://test/classify", content=slow(), headers=headers)
    assert (reply.status_code, reply.json()["title"]) == (408, "request too slow")
    assert reply.json()["detail"].startswith("the body is too slow: 1 bytes arrived")
    assert not callee.asked


async def test_slow_bodies_take_no_place_from_those_that_are_there() -> None:
    callee, end = Callee(CLASSIFIED), asyncio.Event()
    patient, pace = Budget("bodies", 2**20, most=1), Pace(most_s=1e6, head_start_s=1e6)
    app = http.application("classification", callee, patient, pace)

    async def slow() -> AsyncIterator[bytes]:
        yield BODY[:10]
        await end.wait()
        yield BODY[10:]

    headers = {"content-type": "application/json"}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, headers=headers) as door:
        url = "http://test/classify"
        first = asyncio.create_task(door.post(url, content=slow()))
        while not patient.number:
            await asyncio.sleep(0)
        refused = await door.post(url, content=slow())
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert await status_of(app, events(BODY, len(BODY))) == 200
        end.set()
        assert (await first).is_success
    assert patient.number == 0


async def test_a_caller_who_hangs_up_while_sending_is_no_error_of_ours() -> None:
    arriving = [*events(BODY, 10)[:1], {"type": "http.disconnect"}]

    async def receive() -> dict[str, Any]:
        return arriving.pop(0)

    async def send(event: object) -> None:
        raise AssertionError(f"nobody is there for {event}")

    callee = Callee(CLASSIFIED)
    before = count("Classify", "CANCELLED")
    with pytest.raises(asyncio.CancelledError):
        await http.application("classification", callee)(SCOPE, receive, send)
    assert count("Classify", "CANCELLED") == before + 1
    assert not callee.asked


async def test_every_answer_is_counted_under_its_rpc_and_code() -> None:
    before = count("EmbedText", "OK"), count("Embed", "INVALID_ARGUMENT")
    async with client("backbone", Callee(pb.EmbedTextResponse())) as door:
        assert (await door.post("/embed", json={"texts": ["a"]})).status_code == 200
        assert (await door.post("/embed", content=b"{")).status_code == 415
        assert (await door.post("/embed", json={"colour": 1})).status_code == 400
    assert count("EmbedText", "OK") == before[0] + 1
    assert count("Embed", "INVALID_ARGUMENT") == before[1] + 2


async def test_an_application_says_how_it_is() -> None:
    async with client("classification", Callee(CLASSIFIED)) as door:
        assert (await door.get("/healthz")).json() == {"cache": "warm"}
    async with client("classification", Callee(Unavailable("the device does not work"))) as door:
        reply = await door.get("/healthz")
    assert (reply.status_code, reply.json()["detail"]) == (503, "the device does not work")


LINES = {"accept": http.LINES}


async def test_a_stream_is_one_object_per_line_and_one_request() -> None:
    before = count("StreamEverything", "OK")
    async with client("segmentation", Callee(CLASSIFIED)) as door:
        reply = await door.post("/everything", json={"image": JSON["image"]}, headers=LINES)
    assert (reply.status_code, reply.headers["content-type"]) == (200, http.LINES)
    first, second = (json.loads(line) for line in reply.text.splitlines())
    assert (first["progress"], first["image"]["key"], second["withdrawn"]) == (0.5, "k", [3])
    assert count("StreamEverything", "OK") == before + 1


async def test_an_error_before_the_first_line_has_its_status_and_a_later_one_is_the_last() -> None:
    async with client("segmentation", Callee(KeyUnknown("send the image"))) as door:
        reply = await door.post("/everything", json={"image": JSON["image"]}, headers=LINES)
        assert reply.status_code == 200
        last = json.loads(reply.text.splitlines()[-1])
        assert (last["status"], last["detail"]) == (409, "send the image")
        reply = await door.post("/everything", json={"imag": ""}, headers=LINES)
        assert (reply.status_code, reply.json()["request_id"]) == (400, "id-1")
    assert reply.headers["content-type"] == "application/problem+json"


EVERYTHING = SCOPE | {
    "path": "/everything",
    "headers": [*SCOPE["headers"], (b"accept", http.LINES.encode()), (TIMEOUT.encode(), b"500m")],
}


async def receive_image() -> dict[str, Any]:
    return {"type": "http.request", "body": json.dumps({"image": JSON["image"]}).encode()}


async def test_a_caller_that_leaves_ends_the_stream() -> None:
    before = count("StreamEverything", "CANCELLED")

    async def send(message: MutableMapping[str, Any]) -> None:
        if message.get("body"):
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await http.application("segmentation", Callee(CLASSIFIED))(EVERYTHING, receive_image, send)
    assert count("StreamEverything", "CANCELLED") == before + 1


async def test_a_reply_that_nobody_reads_holds_its_place_until_the_deadline() -> None:
    """It is then cut: the start was sent, and nothing can follow."""
    arriving, blocked = events(BODY, 100), asyncio.Event()

    async def receive() -> dict[str, Any]:
        return arriving.pop(0)

    async def send(event: MutableMapping[str, Any]) -> None:
        if event.get("body"):
            blocked.set()
            await asyncio.Event().wait()

    before = count("Classify", "DEADLINE_EXCEEDED")
    scope = SCOPE | {"headers": [*SCOPE["headers"], (TIMEOUT.encode(), b"2S")]}
    app = http.application("classification", Callee(CLASSIFIED))
    task = asyncio.create_task(app(scope, receive, send))
    await blocked.wait()
    assert shown(metrics.INFLIGHT.labels("Callee")) == 1
    with pytest.raises(asyncio.CancelledError):
        await task
    assert shown(metrics.INFLIGHT.labels("Callee")) == 0
    assert count("Classify", "DEADLINE_EXCEEDED") == before + 1


async def test_a_line_that_is_not_read_before_the_deadline_is_followed_by_the_error_alone() -> None:
    sent: list[MutableMapping[str, Any]] = []

    async def send(event: MutableMapping[str, Any]) -> None:
        sent.append(event)
        if len(sent) == 2:
            await asyncio.Event().wait()

    before = count("StreamEverything", "DEADLINE_EXCEEDED")
    await http.application("segmentation", Callee(CLASSIFIED))(EVERYTHING, receive_image, send)
    _, _, last = sent
    assert json.loads(last["body"])["status"] == 504
    assert not last.get("more_body")
    assert count("StreamEverything", "DEADLINE_EXCEEDED") == before + 1


async def test_bodies_beyond_the_bytes_in_transit_are_429_until_others_are_parsed() -> None:
    arrivals = Budget("bodies", 100)
    app = http.application("classification", Callee(CLASSIFIED), arrivals)

    with arrivals.reserve() as reserved:
        reserved.hold(90)
        left = events(BODY, 15)
        assert await status_of(app, left) == 429
        assert left  # not read any further
    assert await status_of(app, events(BODY, 15)) == 200
    assert (arrivals.number, arrivals.bytes) == (0, 0)


async def test_a_body_is_not_parsed_after_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = threading.Event()
    parsers = Threads("parse", 1)
    monkeypatch.setattr(transit, "PARSERS", parsers)
    parsers._pool.submit(waiting.wait, 60)
    callee = Callee(CLASSIFIED)
    async with client("classification", callee) as door:  # httpx sends a body in two events
        reply = await door.post("/classify", json=JSON, headers={TIMEOUT: "50m"})
    waiting.set()
    assert (reply.status_code, reply.json()["title"]) == (504, "deadline exceeded")
    assert not callee.asked


async def test_bodies_and_replies_are_converted_beside_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[threading.Thread] = []

    def noted(function: Any) -> Any:
        def call(*given: Any) -> Any:
            threads.append(threading.current_thread())
            return function(*given)

        return call

    for where, name in (
        (bodies, "parse"),
        (messages, "to_message"),
        (http, "to_json"),
        (http.LongJSON, "render"),
    ):
        monkeypatch.setattr(where, name, noted(getattr(where, name)))
    async with client("classification", Callee(CLASSIFIED)) as door:
        assert (await door.post("/classify", json=JSON)).is_success
    assert len(threads) == 4
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("path", ["/classify", "/healthz", "/nowhere"])
async def test_what_did_not_come_through_the_front_door_is_refused(path: str) -> None:
    callee = Callee(CLASSIFIED)
    async with client("classification", callee) as door:
        reply = await door.post(path, json=JSON, headers={calls.SECRET_HEADER: "guessed"})
    assert reply.status_code == 401
    assert reply.json()["detail"] == calls.REFUSAL
    assert not callee.asked
