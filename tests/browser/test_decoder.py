"""Masks that the browser decodes: under the pointer, kept by a click, and those of the service."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from playwright.sync_api import Route, expect
from samclip.values.runs import Runs, decode_pixels
from segment_anything import build_sam_vit_b

from samclip_core.answers.sam_head import SamHead
from samclip_core.engine import graphs, sam_layout
from samclip_core.geometry import Geometry
from samclip_core.io import checkpoint
from samclip_core.model import SamClip
from samclip_core.nn.network import SAM_PARTS, load_net
from samclip_core.types import ImageFeatures, Prompt
from services.gateway import browser_decoder
from tests.browser.conftest import PATIENCE_MS, User
from tests.converted import efficientvit_sam, make_pair
from tests.official import sharpened
from tests.weights import seeded

pytestmark = pytest.mark.browser

DECODER = "**/models/edge/decoder.onnx"


@pytest.fixture
def decodes(desktop: User) -> User:
    """Return a desktop whose service has ONNX Runtime Web."""
    return _with_runtime(desktop)


def _with_runtime(user: User) -> User:
    browser_decoder.prepare()
    folder = browser_decoder.folder(wanted=True)
    if folder is None:
        pytest.skip("npm could not fetch ONNX Runtime Web")

    def of_service(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json=answer.json() | {"decoder": True})

    def of_folder(route: Route) -> None:
        name = route.request.url.rpartition("/")[2]
        kind = "text/javascript" if name.endswith("js") else "application/gzip"
        route.fulfill(path=folder / name, content_type=kind)

    user.page.context.route("**/playground/service.json", of_service)
    user.page.context.route("**/playground/onnxruntime/*", of_folder)
    user.page.reload()
    user.begin()
    return user


def _hover(user: User, x: float, y: float) -> None:
    stage = user.page.locator("#stage").bounding_box()
    assert stage is not None
    left, top = user.place(x, y)
    user.page.mouse.move(stage["x"] + left, stage["y"] + top)


def _picture(user: User) -> str:
    """Return what is on the photograph's canvas."""
    drawn: str = user.page.locator("#stage").evaluate("canvas => canvas.toDataURL()")
    return drawn


def _preview(user: User) -> None:
    """Hover until a mask is under the pointer, where nothing was found."""
    user.open_sample()
    _hover(user, 0.01, 0.01)
    before = _picture(user)
    for turn in range(PATIENCE_MS // 200):
        _hover(user, 0.4 + turn % 2 / 100, 0.5)
        user.page.wait_for_timeout(200)
        if _picture(user) != before:
            return
    raise AssertionError("no mask has come under the pointer")


def _paths(user: User) -> list[str]:
    return [request.url.rpartition("/")[2] for request in user.sent]


def test_a_mask_follows_the_pointer_and_a_click_keeps_it_without_a_request(decodes: User) -> None:
    expect(decodes.page.locator("#preview")).to_be_checked()
    _preview(decodes)
    assert _paths(decodes) == ["embed"]
    decodes.sent.clear()
    decodes.segment()
    decodes.says("of the photograph")
    expect(decodes.page.locator("#choices label")).to_have_count(3)
    decodes.point(0.1, 0.1)  # a correction
    expect(decodes.page.locator("#choices")).to_be_hidden()
    decodes.page.click("#undo")
    expect(decodes.page.locator("#choices label")).to_have_count(3)
    assert not decodes.sent
    decodes.find("a cat")
    decodes.says("found")
    assert _paths(decodes) == ["segment"]


@pytest.mark.parametrize(
    ("status", "reason"), [(404, "no decoder"), (200, "the model is being replaced")]
)
def test_without_the_models_decoder_the_service_is_asked(
    decodes: User, status: int, reason: str
) -> None:
    def answer(route: Route) -> None:
        if status == 404:
            route.fulfill(status=404, json={"detail": "the model has no decoder"})
        else:  # of another checkpoint than the embedding's
            reply = route.fetch()
            route.fulfill(response=reply, headers={**reply.headers, "x-samclip-model": "0" * 64})

    decodes.page.context.route(DECODER, answer)
    decodes.open_sample()
    _hover(decodes, 0.4, 0.5)
    decodes.says("The service makes the masks, without a preview")
    decodes.says(reason)
    expect(decodes.page.locator("#preview")).not_to_be_checked()
    decodes.sent.clear()
    decodes.segment()
    assert _paths(decodes) == ["segment"]
    decodes.problems.clear()  # the browser logs the 404
    decodes.page.context.unroute(DECODER, answer)
    decodes.page.check("#preview")
    _preview(decodes)  # the next photograph asks for the decoder again


def test_an_embedding_that_has_expired_is_made_again_from_the_file(decodes: User) -> None:
    decodes.open_sample()
    decodes.ask("classify")
    decodes.says("most likely")  # from now on the photograph has a key
    gone = iter([True])

    def answer(route: Route) -> None:
        if next(gone, False):
            route.fulfill(status=409, json={"detail": "the image key is unknown"})
        else:
            route.continue_()

    decodes.page.context.route("**/embed", answer)
    decodes.sent.clear()
    for turn in range(PATIENCE_MS // 200):
        _hover(decodes, 0.4 + turn % 2 / 100, 0.5)
        decodes.page.wait_for_timeout(200)
        if len(decodes.sent) == 2:
            break
    assert _paths(decodes) == ["embed", "embed"]
    assert 'name="image"; filename=' in decodes.form()
    decodes.problems.clear()


def test_the_example_for_other_pages_draws_the_mask_under_the_pointer(decodes: User) -> None:
    page = decodes.page
    page.goto(f"{page.url.rstrip('/')}/playground/hover.html")
    expect(page.locator("#status")).to_contain_text("Move the pointer")
    before = page.locator("#canvas").evaluate("canvas => canvas.toDataURL()")
    page.hover("#canvas", position={"x": 200, "y": 150})
    page.wait_for_function("before => canvas.toDataURL() !== before", arg=before)


def test_a_long_press_looks_at_what_a_tap_would_take(phone: User) -> None:
    user = _with_runtime(phone)
    user.open_sample()
    stage = user.page.locator("#stage").bounding_box()
    assert stage is not None
    left, top = user.place(0.4, 0.5)
    touch = user.page.context.new_cdp_session(user.page)
    before = _picture(user)

    def press(kind: str, x: float = 0) -> None:
        points = [{"x": stage["x"] + left + x, "y": stage["y"] + top}] if kind != "touchEnd" else []
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    press("touchStart")
    for turn in range(PATIENCE_MS // 200):
        user.page.wait_for_timeout(200)
        if _picture(user) != before:
            break
        if turn > 2:  # until the decoder is ready
            press("touchMove", turn % 2)
    assert not user.objects().count()
    user.sent.clear()
    press("touchEnd")
    expect(user.objects()).to_have_count(1)
    assert not user.sent


DECODE = """async prompts => {
  const {Decoder} = await import("/playground/decoder.js");
  const sample = await (await fetch("/playground/samples/chelsea.jpg")).blob();
  const body = new FormData(), headers = {accept: "application/octet-stream"};
  body.append("image", sample, "a.jpg");
  body.append("outputs", "SAM");
  const reply = await fetch("/embed", {method: "POST", body, headers});
  const about = name => JSON.parse(reply.headers.get(`x-samclip-${name}`));
  const data = await reply.arrayBuffer(), embedding = {shape: about("shape")};
  embedding.geometry = about("geometry");
  const model = await (await fetch("/models/edge/decoder.onnx")).arrayBuffer();
  const decoder = await Decoder.open({model, runtime: "/playground/onnxruntime/"});
  await decoder.use({...embedding, data});
  const found = [];
  for (const prompt of prompts) found.push(...await decoder.decode(prompt));
  const plain = found.map(mask => ({...mask, runs: [...mask.runs], logits: [...mask.logits]}));
  const refused = await decoder.decode({}).catch(error => error.message);
  decoder.close();
  const closed = await decoder.decode({points: [{x: 1, y: 1}]}).catch(error => error.message);
  const text = Array.from(new Uint8Array(data), byte => String.fromCharCode(byte)).join("");
  return {...embedding, data: btoa(text), found: plain, refused, closed};
}"""


def _prompts(width: int, height: int) -> Iterator[tuple[dict[str, Any], Prompt, bool]]:
    """Yield prompts for the browser and the library, and whether three masks answer."""
    here, there = (0.4 * width, 0.5 * height), (0.9 * width, 0.1 * height)
    box = (0.2 * width, 0.1 * height, 0.8 * width, 0.9 * height)
    one, other = ({"x": x, "y": y} for x, y in (here, there))
    sides = dict(zip(("x_min", "y_min", "x_max", "y_max"), box, strict=True))
    both = Prompt(points=(here, there), negative=(False, True))
    yield {"points": [one]}, Prompt(points=(here,)), True
    yield {"points": [one, {**other, "negative": True}]}, both, False
    yield {"box": sides}, Prompt(box=box), False
    yield {"box": sides, "points": [one]}, Prompt(points=(here,), box=box), False


def _converted(kind: str, data: Path, folder: Path) -> Path:
    """Convert a SAM of this kind with random weights, beside a small CLIP.

    EfficientViT-SAM's encoder has another frame than the decoder, SAM's is ViT-B of official size.
    """
    if kind == "efficientvit-sam":
        return make_pair(efficientvit_sam("l0", data, folder), folder / "pair")
    if kind == "mobile-sam":
        return make_pair(data / "mobile-sam-random/mobile_sam.pth", folder / "pair")
    file = folder / "sam_vit_b.pth"
    torch.save(sharpened(seeded(build_sam_vit_b, 5)).state_dict(), file)
    return make_pair(file, folder / "pair")


def _answer_as(user: User, directory: Path) -> None:
    """Let the browser get the decoder of this checkpoint, and an embedding of noise."""
    config = checkpoint.read_config(directory)
    graph = ir.to_proto(graphs.mask_decoder(load_net(directory, SAM_PARTS), config))
    decoder = sam_layout.around(graph.SerializeToString(), config)
    shape, (width, height) = (config.embed_dim, config.grid, config.grid), user.size
    data = np.random.default_rng(0).normal(size=shape).astype(np.float16).tobytes()
    geometry = {"height": height, "width": width, "size": config.image_size, "squash": False}
    headers = {"x-samclip-shape": json.dumps(shape), "x-samclip-geometry": json.dumps(geometry)}
    user.page.route(DECODER, lambda route: route.fulfill(body=decoder))
    user.page.route("**/embed", lambda route: route.fulfill(body=data, headers=headers))


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("mobile-sam", "sam")]


@pytest.mark.parametrize("kind", ["edge", "efficientvit-sam", *SLOW])
def test_masks_are_those_of_the_service(
    decodes: User, request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    if kind == "edge":
        directory = checkpoint.resolve("edge")
    else:
        data = request.getfixturevalue("efficientvit_sam_tiny").parent
        directory = _converted(kind, data, tmp_path)
        _answer_as(decodes, directory)
    asked, prompts, several = zip(*_prompts(*decodes.size), strict=True)
    answer = decodes.page.evaluate(DECODE, asked)
    model = SamClip.load(directory, dtype="float32", engine="torch")
    geometry = Geometry(**answer["geometry"])
    sam_Dhw = np.frombuffer(base64.b64decode(answer["data"]), np.float16).reshape(answer["shape"])
    features = ImageFeatures(geometry, sam_Dhw=sam_Dhw, dtype="float32")
    head = SamHead(model.config, model.engine)
    expected = [
        (logits_hw, mask_HW, iou)
        for prompt, multimask in zip(prompts, several, strict=True)
        for found in head.segment(features, [prompt], multimask)
        for logits_hw, mask_HW, iou in zip(
            found.logits_Mhw, found.masks_MHW, found.predicted_iou_M, strict=True
        )
    ]
    assert len(answer["found"]) == len(expected) == 6
    for found, (logits_hw, mask_HW, iou) in zip(answer["found"], expected, strict=True):
        logits = np.reshape(found["logits"], logits_hw.shape)
        assert abs(logits - logits_hw).max() < 1e-3
        assert abs(found["quality"] - iou) < 1e-3
        start_K, end_K = np.reshape(found["runs"], (-1, 2)).T
        ours_HW = decode_pixels(Runs(start_K, end_K, geometry.height, geometry.width)).T
        assert (ours_HW & mask_HW).sum() >= 0.999 * (ours_HW | mask_HW).sum()
    assert any(0.01 < mask_HW.mean() < 0.99 for _, mask_HW, _ in expected)
    assert "nothing to decode" in answer["refused"]
    assert "closed" in answer["closed"]
