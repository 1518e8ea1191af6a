"""No request within the limits, and none beyond them, keeps an event loop busy."""

import base64
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from google.protobuf.message import Message
from samclip.v1 import samclip_pb2 as pb

from services.gateway.adapters.adapter import Applications
from services.request import http, limits
from services.request.bodies import LongJSON
from services.request.context import RequestContext
from services.retrieval.collection import Collection
from services.settings import Settings
from tests.in_process import Caller, png, responsive
from tests.unit.services.gateway.adapters.conftest import asked_through

LABELS = [f"label {number}" for number in range(1024)]
PAIRS = {f"{number:x}": "" for number in range(1300)}  # as many as 4,096 bytes hold
SMALL = pb.Image(encoded=png())
MEDIUM, LARGE = (
    pb.Image(encoded=cv2.imencode(".png", np.zeros((side, side), np.uint8))[1].tobytes())
    for side in (2000, 8000)
)
AREAS = [pb.Area(box=pb.Box(x_max=10, y_max=10 + n / 20)) for n in range(256)]
POINTS = [pb.Point(x=n % 40 + 0.5, y=n % 30 + 0.5) for n in range(256)]
TEXTS = [pb.Prompt(text=f"text {n}", not_texts=["text 0"] * 64) for n in range(1, 256)]
METADATA = {"text": "é" * 2000}
SQUARE = pb.Image(encoded=cv2.imencode(".png", np.zeros((1000, 1000), np.uint8))[1].tobytes())
STRIPES = pb.CocoRle(height=1000, width=1000, counts=b"111" + b"0" * (10**6 - 3))
EXAMPLES = [pb.Example(image=SQUARE, mask=STRIPES)] * 16


def prompts(count: int, points: int = 1) -> list[pb.Prompt]:
    return [pb.Prompt(points=POINTS[:points])] * count


AT_THE_LIMITS: dict[str, tuple[str, Message]] = {
    "texts": ("EmbedText", pb.EmbedTextRequest(texts=[f"{n} " * 300 for n in range(2048)])),
    "outputs": ("Embed", pb.EmbedRequest(image=SMALL, inline=True)),
    "images": ("Classify", pb.ClassifyRequest(images=[SMALL] * 64, labels=LABELS)),
    "areas": ("Classify", pb.ClassifyRequest(images=[SMALL], areas=AREAS, labels=LABELS[:600])),
    "points": ("Segment", pb.SegmentRequest(image=SMALL, prompts=prompts(256, 256))),
    "logits": (
        "Segment",
        pb.SegmentRequest(image=SMALL, prompts=prompts(256), encoding=pb.LOGITS, multimask=True),
    ),
    "pixels": (
        "Segment",
        pb.SegmentRequest(image=LARGE, prompts=prompts(2), encoding=pb.PNG),
    ),
    "examples": (
        "Segment",
        pb.SegmentRequest(image=SQUARE, prompts=[pb.Prompt(examples=EXAMPLES)]),
    ),
    "phrases": ("Segment", pb.SegmentRequest(image=SMALL, prompts=TEXTS)),
    "everything": (
        "SegmentEverything",
        pb.SegmentEverythingRequest(image=SMALL, labels=LABELS, encoding=pb.POLYGONS),
    ),
    "regions": ("SegmentText", pb.SegmentTextRequest(image=SMALL, labels=LABELS)),
    "others": ("Explain", pb.ExplainRequest(image=SMALL, label="a cat", others=LABELS[1:])),
    "deleted": ("Delete", pb.DeleteRequest(collection="all", ids=[str(n) for n in range(10_000)])),
    "items": (
        "Index",
        pb.IndexRequest(
            collection="all",
            items=[pb.IndexItem(id=str(n), image=SMALL, metadata=PAIRS) for n in range(1024)],
        ),
    ),
}


@pytest.mark.parametrize(("rpc", "request_"), AT_THE_LIMITS.values(), ids=AT_THE_LIMITS)
async def test_the_largest_requests_are_answered_off_the_event_loop(
    caller: Caller, rpc: str, request_: Message
) -> None:
    if rpc == "Delete":
        await caller("Index", pb.IndexRequest(collection="all", items=[_item("0")]))
    with responsive():
        await caller(rpc, request_)


def _item(id: str) -> pb.IndexItem:
    return pb.IndexItem(id=id, image=SMALL)


MILLION = 1_000_000
BEYOND: dict[str, tuple[str, Message, str]] = {
    "outputs": ("Embed", pb.EmbedRequest(image=SMALL, outputs=[pb.SAM] * MILLION), "outputs, at"),
    "texts": ("EmbedText", pb.EmbedTextRequest(texts=["a"] * MILLION), "texts, at most"),
    "labels": ("Classify", pb.ClassifyRequest(images=[SMALL], labels=["a"] * MILLION), "labels"),
    "templates": (
        "Classify",
        pb.ClassifyRequest(images=[SMALL], labels=["a"], templates=["{}"] * MILLION),
        "1000000 templates for 1 labels",
    ),
    "scores": (
        "Classify",
        pb.ClassifyRequest(images=[SMALL], areas=AREAS, labels=LABELS),
        "262,144 scores, 1,024 for each of 256 images or areas, would have",
    ),
    "points": (
        "Segment",
        pb.SegmentRequest(image=SMALL, prompts=[pb.Prompt(points=POINTS * 4000)]),
        "points, at most 256",
    ),
    "others": (
        "Explain",
        pb.ExplainRequest(image=SMALL, label="a", others=["a"] * MILLION),
        "1000001 labels, at most",
    ),
    "ids": ("Delete", pb.DeleteRequest(collection="all", ids=["a"] * MILLION), "1,000,000 ids"),
}


@pytest.mark.parametrize(("rpc", "request_", "words"), BEYOND.values(), ids=BEYOND)
async def test_larger_requests_are_refused_before_they_are_walked(
    caller: Caller, rpc: str, request_: Message, words: str
) -> None:
    with responsive():
        code, details = await caller.refused(rpc, request_)
    assert (code, words in details) == ("INVALID_ARGUMENT", True), details


async def test_metadata_of_a_million_pairs_is_refused_before_it_is_walked(caller: Caller) -> None:
    item = _item("0")
    item.metadata.update({str(number): "" for number in range(MILLION)})
    with responsive():
        reply = await caller("Index", pb.IndexRequest(collection="all", items=[item]))
    assert "bytes, at most 4,096" in reply.errors[0].message


PAGES: dict[str, tuple[str, Message]] = {
    "hits": ("Search", pb.SearchRequest(collection="all", id="0", top_k=10_000)),
    "listed": ("ListItems", pb.ListItemsRequest(collection="all", limit=10_000)),
}


@pytest.mark.parametrize(("rpc", "request_"), PAGES.values(), ids=PAGES)
async def test_a_page_has_all_metadata_or_is_refused(
    caller: Caller, monkeypatch: pytest.MonkeyPatch, rpc: str, request_: Message
) -> None:
    """Metadata of few long texts fits; of many short ones, each pair costs as much in JSON."""
    await caller("Index", pb.IndexRequest(collection="all", items=[_item("0")]))
    for metadata, fits in ((METADATA, True), (PAIRS, False)):
        hits = [pb.Hit(id="0", score=1.0, metadata=metadata)] * 10_000
        listed = [pb.ListedItem(id="0", metadata=metadata)] * 10_000
        monkeypatch.setattr(Collection, "search", lambda *_, hits=hits: hits)
        monkeypatch.setattr(Collection, "items", lambda *_, listed=listed: listed)
        with responsive():
            if fits:
                assert (await caller(rpc, request_)).ByteSize() > 10_000 * 4000
            else:
                code, details = await caller.refused(rpc, request_)
                assert (code, "ask for fewer" in details) == ("INVALID_ARGUMENT", True)


class Answering:
    """An application with one answer."""

    name = "SegmentationService"

    def __init__(self, settings: Settings, answer: Message):
        self.settings, self._answer = settings, answer

    def arrive(self, *_: Any) -> RequestContext:
        return RequestContext()

    async def answer(self, *_: Any) -> Message:
        return self._answer


def _rings(numbers: int) -> pb.Mask:
    xy = np.arange(numbers, dtype=np.float32)
    return pb.Mask(polygons=pb.Polygons(polygons=[pb.Polygon(xy=xy)]))


def _answer(masks: Sequence[pb.Mask]) -> pb.SegmentResponse:
    return pb.SegmentResponse(results=[pb.PromptResult(masks=masks)])


def _largest(mask: pb.Mask, count: int) -> pb.SegmentResponse:
    """Return an answer that is just within the limit."""
    reply = limits.Reply()
    masks = [*reply.within([mask] * count)]
    with pytest.raises(limits.InvalidRequest, match="or for masks as RLE"):
        [*reply.within([mask])]
    return _answer(masks)


LARGEST: dict[str, Callable[[], pb.SegmentResponse]] = {
    "pictures": lambda: _largest(pb.Mask(png=bytes(8_000_000)), 10),
    # A quarter of the largest: on the event loop, that would take seconds as well.
    "rings": lambda: _answer([_rings(200_000)] * 3),
}


@pytest.mark.parametrize("answer", LARGEST.values(), ids=LARGEST)
async def test_the_largest_answers_become_json_off_the_event_loop(
    settings: Settings, answer: Callable[[], Message]
) -> None:
    app = http.application("segmentation", Answering(settings, answer()))
    transport = httpx.ASGITransport(app)
    body = {"image": "AAAA", "prompts": [{"points": [[1, 1]]}]}
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        with responsive():
            reply = await client.post("/segment", json=body)
    assert reply.status_code == 200
    assert len(reply.content) > 3_000_000


def test_other_threads_work_while_long_json_is_written() -> None:
    """``json.dumps`` would keep the GIL, and with it the event loop, until its end."""
    done, turns = threading.Event(), 0

    def work() -> None:
        nonlocal turns
        while not done.wait(0):
            turns += 1

    other = threading.Thread(target=work)
    values = {"numbers": [0.1] * MILLION}
    other.start()
    before = turns
    text = LongJSON(values).body
    during = turns - before
    done.set()
    other.join()
    assert text == b'{"numbers":[' + b",".join([b"0.1"] * MILLION) + b"]}"
    assert during > 100


def test_long_json_needs_little_memory_besides_its_bytes() -> None:
    """One emoji would make all other characters of a text four bytes."""
    values = {"data": "A" * 10_000_000, "label": "\N{CAT FACE}", "numbers": [0.125] * 100_000}
    tracemalloc.start()
    size = len(LongJSON(values).body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * size


@pytest.fixture
async def adapters(settings: Settings, caller: Caller) -> AsyncIterator[httpx.AsyncClient]:
    applications = Applications(settings.model_copy(update={"inner_grpc_port": caller.port}))
    async with asked_through(applications) as opened:
        yield opened
    await applications.close()


def _uri(image: pb.Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(image.encoded).decode()}"


def _label_studio(image: pb.Image, tasks: int, regions: int) -> dict[str, Any]:
    config = (
        '<View><Image name="i" value="$i"/><RectangleLabels name="r" toName="i"><Label value="a"/>'
        '</RectangleLabels><BrushLabels name="b" toName="i"><Label value="a"/></BrushLabels></View>'
    )
    box = {"x": 10, "y": 10, "width": 50, "height": 50, "rectanglelabels": ["a"]}
    region = {"type": "rectanglelabels", "value": box, "original_width": 40, "original_height": 30}
    return {
        "tasks": [{"data": {"i": _uri(image)}}] * tasks,
        "label_config": config,
        "params": {"context": {"result": [region] * regions}},
    }


def _tensors(name: str, outputs: int) -> dict[str, Any]:
    inputs = [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}]
    return {"inputs": inputs, "outputs": [{"name": name}] * outputs}


BRUSH, INFER = "/adapters/label-studio/predict", "/v2/models/embed-text/infer"
POLYGONS = "/adapters/x-anylabeling/v1/predict"
MARKS = [{"type": "point", "data": [1, 1]}]
ROUTES: dict[str, tuple[str, Callable[[], dict[str, Any]], int]] = {
    "brushes": (BRUSH, lambda: _label_studio(SMALL, 64, 256), 200),
    "a large brush": (BRUSH, lambda: _label_studio(LARGE, 1, 1), 200),
    "regions": (BRUSH, lambda: _label_studio(SMALL, 64, 10_000), 400),
    "outputs": (INFER, lambda: _tensors("embedding", 64), 200),
    "many outputs": (INFER, lambda: _tensors("embedding", 300_000), 400),
    "floats": ("/v1/embeddings", lambda: {"input": ["a"] * 2048}, 200),
    "many texts": ("/v1/embeddings", lambda: {"input": ["a"] * 900_000}, 400),
    "marks": (
        POLYGONS,
        lambda: {"image": _uri(LARGE), "params": {"marks": MARKS * 256}},
        200,
    ),
    "phrases": (
        POLYGONS,
        lambda: {"image": _uri(SMALL), "params": {"text_prompt": ".".join(map(str, range(6000)))}},
        400,
    ),
}


@pytest.mark.parametrize(("path", "body", "code"), ROUTES.values(), ids=ROUTES)
async def test_adapters_answer_off_the_event_loop(
    adapters: httpx.AsyncClient, path: str, body: Callable[[], dict[str, Any]], code: int
) -> None:
    asked = body()
    if not path.startswith((BRUSH, INFER)):
        asked["model"] = (await adapters.get("/v1/models")).json()["data"][0]["id"]
    content = LongJSON(asked).body
    headers = {"content-type": "application/json"}
    with responsive():
        reply = await adapters.post(path, content=content, headers=headers)
    assert reply.status_code == code, reply.text[:1000]
