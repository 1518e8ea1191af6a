"""Label Studio's backend: masks in its format, and what it may fetch."""

import asyncio
import gzip
import json
import time
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from samclip.mask_codecs import decode_rle
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import AnotherCheckpoint, ImageTooLarge, InvalidRequest, Unavailable
from samclip_core.io import brush, masks
from samclip_core.io.brush import decode_brush, encode_brush
from services.batching.priority import TIMEOUT
from services.gateway.adapters.adapter import Applications
from services.gateway.adapters.label_studio import drawing
from services.gateway.adapters.label_studio.files import AT_ONCE, COPIES, Files
from services.gateway.adapters.label_studio.routes import Control, LabelStudio, Task
from services.request.context import RequestContext
from services.settings import Settings
from tests.in_process import Caller
from tests.unit.services.batching.device import NOW
from tests.unit.services.gateway.adapters.conftest import outlines_of, uri

PREFIX = "/adapters/label-studio"
IMAGE = '<Image name="photo" value="$image"/>'
CLICKS = '<KeyPointLabels name="click" toName="photo"><Label value="cat"/></KeyPointLabels>'
BOXES = '<RectangleLabels name="box" toName="photo"><Label value="cat"/></RectangleLabels>'
BRUSH = '<BrushLabels name="brush" toName="photo"><Label value="cat"/></BrushLabels>'
RINGS = '<PolygonLabels name="ring" toName="photo"><Label value="cat"/></PolygonLabels>'
CHOICES = """<Choices name="kind" toName="photo"><Choice value="a dog"/><Choice value="a cat"/>
</Choices>"""


def unpack(packed: list[int]) -> np.ndarray:
    """Return the values of Label Studio's run lengths, as its page reads them."""
    bits = "".join(f"{byte:08b}" for byte in packed)
    position = 0

    def take(count: int) -> int:
        nonlocal position
        position += count
        return int(bits[position - count : position], 2)

    total, size = take(32), take(5) + 1
    widths = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        same = take(1)
        length = take(widths[take(2)]) + 1
        values += [take(size)] * length if same else [take(size) for _ in range(length)]
    return np.array(values, np.uint8)


@given(arrays.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_a_brush_holds_the_mask(mask_HW: np.ndarray) -> None:
    rgba = unpack([*encode_brush(masks.find_runs(mask_HW))]).reshape(*mask_HW.shape, 4)
    np.testing.assert_array_equal(rgba, np.repeat(255 * mask_HW[..., None].astype(np.uint8), 4, 2))


def _columns(width: int, height: int, step: int) -> masks.Runs:
    """Return the runs of every ``step``-th column, without pixels."""
    start_K = np.arange(0, width, step) * height
    return masks.Runs(start_K, start_K + height, height, width)


def test_a_brush_needs_the_runs_of_a_mask_and_not_its_pixels() -> None:
    packed = encode_brush(_columns(2**20, 2, 2**20))  # a pixel at the start of two rows
    bits = np.unpackbits(np.frombuffer(packed, np.uint8))[53:].astype(int)
    words = [
        int("".join(map(str, word)), 2) for word in bits[: len(bits) // 27 * 27].reshape(-1, 27)
    ]
    lengths, values = [(word >> 8) % 2**16 + 1 for word in words], [word % 256 for word in words]
    assert sum(lengths) == 4 * 2 * 2**20
    assert [length for length, value in zip(lengths, values, strict=True) if value] == [4, 4]


def test_a_brush_of_too_many_edges_is_refused_before_they_are_found() -> None:
    with pytest.raises(InvalidRequest, match="would have 64,000,000 edges, at most 524,288"):
        encode_brush(_columns(8000, 8000, 2))


def asked(photo: bytes, *controls: str, regions: list[dict[str, Any]] | None = None) -> Any:
    return {
        "tasks": [{"id": 1, "data": {"image": uri(photo)}}],
        "project": "1.1",
        "label_config": f"<View>{IMAGE}{''.join(controls)}</View>",
        "params": {"context": {"result": regions} if regions else None},
    }


def region(kind: str, **value: Any) -> dict[str, Any]:
    sides = {"original_width": 40, "original_height": 30}
    return {"type": kind, "value": {**value, kind: ["cat"]}, **sides}


def click(x: float, y: float, positive: int = 1) -> dict[str, Any]:
    return {**region("keypointlabels", x=x, y=y), "is_positive": positive}


NO_TEXT = {"x": 5, "y": 5, "keypointlabels": [["cat"]]}


async def test_regions_are_read_once_for_all_tasks(
    adapters: httpx.AsyncClient, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, add = [], drawing.Drawing.add
    monkeypatch.setattr(drawing.Drawing, "add", lambda *given: read.append(1) or add(*given))
    body = asked(photo, CLICKS, BRUSH, regions=[click(50, 50)])
    body["tasks"] *= 8
    reply = await adapters.post(f"{PREFIX}/predict", json=body)
    assert (len(reply.json()["results"]), len(read)) == (8, 1)


async def predicted(adapters: httpx.AsyncClient, body: Any) -> list[dict[str, Any]]:
    reply = await adapters.post(f"{PREFIX}/predict", json=body)
    assert reply.status_code == 200, reply.text
    (prediction,) = reply.json()["results"]
    assert prediction["model_version"]
    for one in prediction["result"]:
        if one["type"] != "choices":
            assert (one["original_width"], one["original_height"]) == (40, 30)
    return list(prediction["result"])


REGIONS = [
    click(25, 40),
    click(75, 20, positive=0),
    region("rectanglelabels", x=5, y=10, width=75, height=80),
]


async def test_clicks_and_a_box_give_a_brush(
    adapters: httpx.AsyncClient, photo: bytes, clicked: pb.Mask
) -> None:
    body = asked(photo, CLICKS, BOXES, BRUSH, regions=REGIONS)
    (one,) = await predicted(adapters, body)
    assert (one["from_name"], one["to_name"], one["type"]) == ("brush", "photo", "brushlabels")
    assert one["value"]["brushlabels"] == ["cat"]
    mask_HW = decode_rle(clicked.rle.counts, 30, 40)
    np.testing.assert_array_equal(unpack(one["value"]["rle"])[::4] > 0, mask_HW.ravel())


async def test_clicks_and_a_box_give_polygons_or_a_rectangle(
    adapters: httpx.AsyncClient, photo: bytes, clicked: pb.Mask
) -> None:
    found = await predicted(adapters, asked(photo, CLICKS, BOXES, RINGS, regions=REGIONS))
    rings = outlines_of(decode_rle(clicked.rle.counts, 30, 40))
    for one, ring in zip(found, rings, strict=True):
        assert one["value"]["polygonlabels"] == ["cat"]
        points = np.array(one["value"]["points"]) * (0.4, 0.3)
        np.testing.assert_allclose(points, ring, atol=1e-4)
    (one,) = await predicted(adapters, asked(photo, CLICKS, BOXES, regions=REGIONS))
    value, tight = one["value"], clicked.box
    assert value["rectanglelabels"] == ["cat"]
    left, top = value["x"] * 0.4, value["y"] * 0.3
    corners = [left, top, left + value["width"] * 0.4, top + value["height"] * 0.3]
    assert corners == pytest.approx([tight.x_min, tight.y_min, tight.x_max, tight.y_max], abs=1e-3)


ROUGH_HW = np.zeros((30, 40), np.bool_)
ROUGH_HW[6:25, 4:33] = True
CORNERS = [[10, 20], [80, 20], [80, 80], [10, 80]]


@pytest.mark.parametrize(
    "drawn",
    [
        [region("brushlabels", format="rle", rle=[*encode_brush(masks.find_runs(ROUGH_HW))])],
        [region("polygonlabels", points=CORNERS), region("polygonlabels", points=CORNERS[1:])],
    ],
    ids=["brush", "polygons"],
)
async def test_what_is_painted_is_a_rough_mask(
    adapters: httpx.AsyncClient, caller: Caller, photo: bytes, drawn: list[dict[str, Any]]
) -> None:
    body = asked(photo, CLICKS, BRUSH, regions=[*drawn, click(25, 40)])
    (one,) = await predicted(adapters, body)
    prompt, label = prompt_of(drawn)
    assert label == "cat"
    rough_HW = decode_rle(prompt.mask.counts, 30, 40)
    assert (rough_HW & ROUGH_HW).sum() / (rough_HW | ROUGH_HW).sum() > 0.9
    prompt.points.add(x=10, y=12)
    request = pb.SegmentRequest(image=pb.Image(encoded=photo), prompts=[prompt])
    (mask,) = (await caller("Segment", request)).results[0].masks
    mask_HW = decode_rle(mask.rle.counts, 30, 40)
    np.testing.assert_array_equal(unpack(one["value"]["rle"])[::4] > 0, mask_HW.ravel())


@given(
    arrays.arrays(
        np.uint8,
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        elements=st.sampled_from([0, 255]),
    )
)
def test_a_brush_of_label_studio_is_read(alpha_HW: np.ndarray) -> None:
    """Its runs have any length, and colours between them single values."""
    runs = masks.find_runs(alpha_HW > 0)
    np.testing.assert_array_equal(decode_brush(encode_brush(runs), *alpha_HW.shape), alpha_HW > 0)
    red = np.dstack([np.arange(alpha_HW.size * 3).reshape(*alpha_HW.shape, 3) % 251, alpha_HW])
    values = [f"{value:08b}" for value in red.ravel()]
    header = f"{red.size:032b}" + f"{7:05b}" + f"{15:04b}" * 4
    bits = header + "011" + f"{red.size - 1:016b}" + "".join(values)  # as one run of single values
    packed = np.packbits([*map(int, bits)]).tobytes()
    np.testing.assert_array_equal(decode_brush(packed, *alpha_HW.shape), alpha_HW > 0)


def prompt_of(regions: list[dict[str, Any]]) -> tuple[pb.Prompt, str]:
    drawn = drawing.Drawing(1200)
    for one in regions:
        drawn.add(one)
    return drawn.to_prompt()


BRUSHED = region("brushlabels", format="rle", rle=[*encode_brush(masks.find_runs(ROUGH_HW))])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"original_width": 10**6, "original_height": 10**6}, "expected 1 to 1,200"),
        ({"original_width": -40}, "expected 1 to 1,200"),
        ({"original_width": "x" * 999}, "unsupported operand"),
        ({"original_width": 39}, "the brush has 4,800 values"),
        ({"value": {"rle": 10**9}}, "OverflowError"),
        ({"value": {"rle": [300]}}, "OverflowError"),
        ({"value": {"rle": BRUSHED["value"]["rle"][:20]}}, "invalid literal"),
        ({"value": {}}, "KeyError"),
        ({"type": "polygonlabels", "value": {"points": [[1, 2], [3]]}}, "ValueError"),
        ({"type": "polygonlabels", "value": {"points": [[1, float("nan")]] * 3}}, "not finite"),
        ({"type": "polygonlabels", "value": {"points": [[1, 2]]}}, "fewer than 3 points"),
    ],
)
def test_a_drawing_that_is_not_one_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=f"a region of the context is not understood.*{words}"):
        prompt_of([{**BRUSHED, **changed}])


def test_drawings_of_two_sizes_and_too_many_pixels_are_refused() -> None:
    """The union of two long regions would have the pixels of neither, but their product."""
    points = {"points": [[0, 0], [100, 0], [100, 100]]}
    wide, high = (
        {
            **BRUSHED,
            "type": "polygonlabels",
            "value": points,
            "original_width": w,
            "original_height": h,
        }
        for w, h in ((1200, 1), (1, 1200))
    )
    with pytest.raises(InvalidRequest, match="drawings of different sizes"):
        prompt_of([wide, high])
    prompt_of([wide] * drawing.DRAWINGS)
    with pytest.raises(InvalidRequest, match="expected 1 to 0"):
        prompt_of([wide] * (drawing.DRAWINGS + 1))


@pytest.mark.parametrize("corners", [12_000, 100])
def test_polygons_of_many_long_edges_are_refused_before_they_are_drawn(corners: int) -> None:
    """One, or two together."""
    corner_N2 = np.random.default_rng(0).random((corners, 2)) * 100
    sides = {"original_width": 4000, "original_height": 4000}
    polygon = {**region("polygonlabels", points=corner_N2.tolist()), **sides}
    drawn = drawing.Drawing(4000**2)
    if corners == 100:
        drawn.add(polygon)
    with pytest.raises(InvalidRequest, match="edges of more than 262,144 pixels"):
        drawn.add(polygon)


async def test_no_more_is_drawn_for_a_caller_who_has_gone(
    adapters: httpx.AsyncClient, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = list[object]()

    def slow(self: drawing.Drawing, one: object) -> None:
        added.append(one)
        time.sleep(0.2)

    monkeypatch.setattr(drawing.Drawing, "add", slow)
    body = asked(photo, CLICKS, BRUSH, regions=[click(25, 40)] * 50)
    reply = await adapters.post(f"{PREFIX}/predict", json=body, headers={TIMEOUT: "300m"})
    assert reply.status_code == 504
    await asyncio.sleep(0.5)
    assert len(added) < 10


def test_a_brush_of_too_many_values_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brush, "MAX_VALUES", 3)
    with pytest.raises(ValueError, match="more than 3 values"):
        decode_brush(bytes(BRUSHED["value"]["rle"]), 30, 40)


def test_of_two_controls_the_first_takes_the_answers() -> None:
    second = BRUSH.replace('"brush"', '"second"')
    found = Task.read(f"<View>{IMAGE}{BRUSH}{second}</View>")
    assert found.answer == Control("BrushLabels", "brush", "photo", ("cat",))


async def test_words_choose_and_find(
    adapters: httpx.AsyncClient, caller: Caller, photo: bytes
) -> None:
    found = await predicted(adapters, asked(photo, BRUSH, CHOICES))
    image = pb.Image(encoded=photo)
    classify = pb.ClassifyRequest(images=[image], labels=["a dog", "a cat"])
    best = (await caller("Classify", classify)).results[0].scores[0]
    (choice,) = (one for one in found if one["type"] == "choices")
    assert choice["value"]["choices"] == [best.label]
    assert choice["score"] == pytest.approx(best.score)
    segment = pb.SegmentRequest(image=image, prompts=[pb.Prompt(text="cat")])
    (result,) = (await caller("Segment", segment)).results
    assert len(found) == 1 + len({*result.things})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"label_config": "<View>"}, "not XML"),
        ({"label_config": "<!DOCTYPE x><View/>"}, "not a labelling configuration"),
        ({"label_config": "<View><Text name='t' value='$t'/></View>"}, "no Image"),
        ({"tasks": "1"}, "tasks is not a list"),
        ({"tasks": []}, "no image"),
        ({"tasks": [{"data": {"picture": "x"}}]}, "expected the field 'image'"),
        ({"tasks": [{"data": {"image": "/data/upload/1/cat.jpg"}}]}, "set label_studio_url"),
        ({"tasks": [{"data": {"image": "https://example.com/cat.jpg"}}]}, "not a data URI"),
        ({"params": {"context": {"result": [{"type": "keypointlabels"}]}}}, "not understood"),
        ({"params": {"context": {"result": [{**click(5, 5), "type": "x"}]}}}, "no key point"),
        ({"params": {"context": {"result": [click(500, 5)]}}}, "outside"),
        ({"params": {"context": {"result": [click(10**400, 5)]}}}, "not understood"),
        (
            {"params": {"context": {"result": [{**click(5, 5), "value": NO_TEXT}]}}},
            "keypointlabels are not texts",
        ),
    ],
)
async def test_what_is_not_understood_is_refused_and_logged(
    adapters: httpx.AsyncClient,
    photo: bytes,
    changed: dict[str, Any],
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    body = {**asked(photo, CLICKS, BRUSH, regions=REGIONS), **changed}
    reply = await adapters.post(f"{PREFIX}/predict", json=body)
    assert reply.status_code == 400
    assert words in reply.json()["error"]
    (line,) = (line.getMessage() for line in caplog.records if line.levelname == "WARNING")
    assert reply.json()["error"] in line  # Label Studio shows no reason, so the log has it


def files(url: str, answer: Any, token: str = "secret") -> tuple[Files, list[httpx.Request]]:
    """Return an adapter's files, with a stand-in for Label Studio."""
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if "token" in request.url.path:
            return httpx.Response(200, json={"access": "new"})
        return httpx.Response(answer.status_code, headers=answer.headers, stream=answer.stream)

    settings = Settings(label_studio_url=url, label_studio_token=token, max_image_bytes=1000)
    made = Files(settings)
    made._client = httpx.AsyncClient(transport=httpx.MockTransport(handle))
    return made, seen


async def read(made: Files, source: Any = "/data/upload/1/a.jpg") -> bytes:
    async with made.opened(source, NOW) as image:
        return bytes(image.encoded)


@pytest.mark.parametrize(
    ("url", "source", "fetched"),
    [
        ("http://ls:80", "/data/upload/1/a.jpg", "http://ls/data/upload/1/a.jpg"),
        ("http://ls", "http://ls/data/local-files/?d=a.jpg", "http://ls/data/local-files/?d=a.jpg"),
        ("https://x.org/ls/", "https://x.org/ls/data/a.jpg", "https://x.org/ls/data/a.jpg"),
    ],
)
async def test_stored_images_are_fetched_with_the_token(
    url: str, source: str, fetched: str
) -> None:
    made, seen = files(url, httpx.Response(200, content=b"photo"))
    assert await read(made, source) == b"photo"
    assert str(seen[0].url) == fetched
    assert seen[0].headers["authorization"] == "Token secret"


async def test_a_personal_token_is_exchanged() -> None:
    made, seen = files("http://ls", httpx.Response(200, content=b"photo"), token="a.b.c")
    await read(made)
    assert json.loads(seen[0].content) == {"refresh": "a.b.c"}
    assert str(seen[0].url) == "http://ls/api/token/refresh/"  # Label Studio adds no slash
    assert seen[1].headers["authorization"] == "Bearer new"


@pytest.mark.parametrize(
    "source",
    [
        "https://ls/data/upload/1/a.jpg",
        "http://ls:81/data/a.jpg",
        "http://me@ls/data/a.jpg",
        "http://ls.example.com/data/a.jpg",
        "//other/data/a.jpg",
        "/api/projects",
        "/data/..\\api",
        "/data/%2e%2e/api/projects",
        "/data/..%5Capi",
        "/data/\x00",
        "/data/" + "a" * 70_000,
        "http://[",
        "/data",
        "http://ls@other/data/a.jpg",
        7,
    ],
)
async def test_nothing_else_is_fetched(source: Any) -> None:
    made, seen = files("http://ls", httpx.Response(200, content=b"photo"))
    with pytest.raises(InvalidRequest):
        await read(made, source)
    assert not seen


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (httpx.Response(302, headers={"location": "http://other/a.jpg"}), InvalidRequest),
        (httpx.Response(403), InvalidRequest),
        (httpx.Response(200, content=bytes(1001)), ImageTooLarge),
    ],
)
async def test_redirects_refusals_and_large_files_are_errors(
    answer: httpx.Response, error: type[Exception]
) -> None:
    made, seen = files("http://ls", answer)
    with pytest.raises(error):
        await read(made)
    assert len(seen) == 1


async def test_a_packed_file_is_not_unpacked() -> None:
    packed = gzip.compress(bytes(100_000))
    packing = {"content-encoding": "gzip"}
    answer = httpx.Response(200, headers=packing, stream=httpx.ByteStream(packed))
    made, seen = files("http://ls", answer)
    assert await read(made) == packed
    assert seen[0].headers["accept-encoding"] == "identity"


async def test_label_studio_that_does_not_answer_as_it_should_is_unavailable() -> None:
    made, _ = files("http://ls", httpx.Response(200), token="a.b.c")
    page = httpx.MockTransport(lambda request: httpx.Response(200, text="<html>"))
    made._client = httpx.AsyncClient(transport=page)  # an answer without a token
    nobody = Files(Settings(label_studio_url="http://127.0.0.1:9", label_studio_token="t"))
    for one in (made, nobody):
        with pytest.raises(Unavailable, match="does not answer"):
            await read(one)


async def test_a_file_that_several_want_is_fetched_once_and_used_in_turn() -> None:
    made, seen = files("http://ls", httpx.Response(200, content=b"photo"))
    using, most = 0, 0

    async def use() -> None:
        nonlocal using, most
        async with made.opened("/data/a.jpg", NOW) as image:
            using += 1
            most = max(most, using)
            await asyncio.sleep(0)
            assert image.encoded == b"photo"
            assert (made.budget.bytes, made.budget.number) == (COPIES * len(b"photo"), 1)
            using -= 1

    await asyncio.gather(*(use() for _ in range(20)))
    assert (len(seen), most) == (1, 1)
    assert (made.budget.bytes, made.budget.number) == (0, 0)
    await use()
    assert len(seen) == 2  # not kept for those who come later


async def test_files_have_room_before_they_are_fetched() -> None:
    made, seen = files("http://ls", httpx.Response(200, content=bytes(1000)))
    there, end = asyncio.Semaphore(0), asyncio.Event()

    async def use(number: int) -> None:
        async with made.opened(f"/data/{number}.jpg", NOW):
            there.release()
            await end.wait()

    tasks = [asyncio.create_task(use(number)) for number in range(5)]
    for _ in range(AT_ONCE):
        await there.acquire()
    await asyncio.sleep(0.01)
    assert (len(seen), made.budget.bytes) == (AT_ONCE, made.budget.most_bytes)
    tasks[3].cancel()  # while it waits
    tasks[0].cancel()  # while it uses its file
    await there.acquire()
    assert len(seen) == AT_ONCE + 1
    end.set()
    await asyncio.wait(tasks)
    assert (len(seen), made.budget.bytes, made.budget.number) == (4, 0, 0)


async def test_a_fetch_that_its_caller_gives_up_is_made_by_the_next() -> None:
    made, seen = files("http://ls", httpx.Response(200, content=b"photo"))
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        begun.set()
        await go_on.wait()
        return httpx.Response(200, stream=httpx.ByteStream(b"photo"))

    made._client = httpx.AsyncClient(transport=httpx.MockTransport(handle))
    first, second = (asyncio.create_task(read(made)) for _ in range(2))
    await begun.wait()
    first.cancel()
    go_on.set()
    assert await second == b"photo"
    assert (len(seen), made.budget.bytes, made.budget.number) == (2, 0, 0)


async def test_one_checkpoint_answers_all_of_a_task(settings: Settings, monkeypatch) -> None:
    """A name may get other files between the two questions."""
    best = pb.ClassifyResult(scores=[pb.Score(label="a cat", score=1)])
    classified = pb.ClassifyResponse(results=[best], model=pb.ModelInfo(digest="1" * 64))
    found = pb.SegmentResponse(results=[pb.PromptResult()], model=pb.ModelInfo(digest="2" * 64))

    async def call(self: Applications, rpc: str, request: Any, context: RequestContext) -> Any:
        return classified if rpc == "Classify" else found

    monkeypatch.setattr(Applications, "call", call)
    task = Task.read(f"<View>{IMAGE}{CHOICES}{BRUSH}</View>")
    predict = LabelStudio(Applications(settings))._predicted
    with pytest.raises(AnotherCheckpoint, match="swapped during the request"):
        await predict(task, pb.Image(), RequestContext())
    found.model.digest = classified.model.digest
    assert (await predict(task, pb.Image(), RequestContext()))["result"]
