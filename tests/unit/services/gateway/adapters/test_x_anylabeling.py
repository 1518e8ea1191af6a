"""X-AnyLabeling's remote server: marks and texts to shapes."""

from typing import Any

import httpx
import numpy as np
import pytest
from samclip.mask_codecs import decode_rle
from samclip.v1 import samclip_pb2 as pb

from services.gateway.adapters.adapter import Applications
from services.gateway.adapters.x_anylabeling.routes import OBJECT, to_shapes, to_texts
from services.request import wire
from services.request.limits import Reply
from tests.unit.services.gateway.adapters.conftest import (
    outlines_of,
    swapped,
    uri,
)

PREFIX = "/adapters/x-anylabeling"


@pytest.fixture
async def model(adapters: httpx.AsyncClient) -> str:
    reply = (await adapters.get(f"{PREFIX}/v1/models")).json()
    ((name, about),) = reply["data"].items()
    assert reply["success"] is True
    assert {"button_add_point", "edit_text"} <= {widget["name"] for widget in about["widgets"]}
    return str(name)


def asked(model: str, photo: bytes, **params: Any) -> dict[str, Any]:
    return {"model": model, "image": uri(photo), "params": params}


async def test_marks_give_the_polygons_of_our_own_api(
    adapters: httpx.AsyncClient, model: str, photo: bytes, clicked: pb.Mask
) -> None:
    marks = [
        {"type": "point", "data": [10, 12], "label": 1},
        {"type": "point", "data": [30, 6], "label": 0},
        {"type": "rectangle", "data": [2, 3, 32, 27], "label": 1},
    ]
    body = asked(model, photo, marks=marks, conf_threshold=0.9, epsilon_factor=0)
    shapes = (await adapters.post(f"{PREFIX}/v1/predict", json=body)).json()["data"]["shapes"]
    rings = outlines_of(decode_rle(clicked.rle.counts, 30, 40))
    assert len(shapes) == len(rings) > 0
    for shape, ring in zip(shapes, rings, strict=True):
        assert (shape["label"], shape["shape_type"]) == (OBJECT, "polygon")
        assert shape["points"][0] == shape["points"][-1]
        assert set(map(tuple, shape["points"])) <= set(map(tuple, ring.tolist()))
        assert 0 <= shape["score"] <= 1


async def test_after_a_swap_a_request_for_the_model_before_is_refused(
    adapters: httpx.AsyncClient,
    applications: Applications,
    monkeypatch: pytest.MonkeyPatch,
    photo: bytes,
) -> None:
    (first, *_) = (await adapters.get("/v1/models")).json()["data"]
    body = asked(first["id"], photo, marks=[{"type": "point", "data": [10, 12]}])
    assert (await adapters.post(f"{PREFIX}/v1/predict", json=body)).is_success
    swapped(applications, monkeypatch, "Segment", name="other")
    reply = await adapters.post(f"{PREFIX}/v1/predict", json=body)
    assert reply.status_code == 404
    assert f"not {first['id']!r}" in reply.json()["error"]["message"]


def test_a_coarser_outline_has_fewer_points() -> None:
    y, x = np.mgrid[:60, :80]
    message = wire.to_mask((x - 40) ** 2 + (y - 30) ** 2 < 400, pb.POLYGONS)
    result = pb.PromptResult(masks=[message], things=[0])
    ball = [pb.Prompt(text="a ball")]
    fine, coarse = (to_shapes(ball, [result], f, Reply()) for f in (0.001, 0.05))
    assert fine[0]["label"] == "a ball"
    assert 4 <= len(coarse[0]["points"]) < len(fine[0]["points"])


def test_a_thing_of_several_sizes_is_one_shape() -> None:
    sizes = [wire.to_mask(np.tile(np.arange(80) < n, (60, 1)), pb.POLYGONS) for n in (40, 50)]
    result = pb.PromptResult(masks=[*sizes, sizes[0]], things=[1, 1, 0])
    shapes = to_shapes([pb.Prompt(text="a wall")], [result], 0, Reply())
    assert [max(np.array(shape["points"])[:, 0]) for shape in shapes] == [40, 40]


def test_texts_are_between_stops_and_commas() -> None:
    assert [one.text for one in to_texts("a cat. a dog,a cat.", 2)] == ["a cat", "a dog"]
    assert to_texts("", 2) == to_texts(None, 2) == []


async def test_nothing_asked_is_nothing_found(
    adapters: httpx.AsyncClient, model: str, photo: bytes
) -> None:
    reply = await adapters.post(f"{PREFIX}/v1/predict", json=asked(model, photo))
    assert reply.json()["data"]["shapes"] == []
    assert (await adapters.get(f"{PREFIX}/health")).json()["status"] == "healthy"


@pytest.mark.parametrize(
    ("changed", "status", "words"),
    [
        ({"model": "yolo"}, 404, "not 'yolo'"),
        ({"image": "https://example.com/a.jpg", "params": {"text_prompt": "a cat"}}, 400,
         "are not fetched"),
        ({"image": None}, 400, "not an image"),
        ({"params": [1]}, 400, "not an object"),
        ({"params": {"marks": [{"type": "circle", "data": [1, 2]}]}}, 400, "marks are points"),
        ({"params": {"marks": [{"type": "point", "data": [1]}]}}, 400, "not understood"),
        ({"params": {"marks": [{"type": "rectangle", "data": [1, 1, 5, 5], "label": 0}]}}, 400,
         "marks are points"),
        ({"params": {"marks": [{"type": "point", "data": [900, 1]}]}}, 400, "outside"),
        ({"params": {"marks": [{"type": "rectangle", "data": [1, 1, 5, 5]}] * 257}}, 400,
         "257 marks, at most 256"),
        ({"params": {"marks": 7}}, 400, "not understood"),
        ({"params": {"marks": [{"type": "point", "data": [10**400, 1]}]}}, 400, "not understood"),
        ({"params": {"text_prompt": 7}}, 400, "not a string"),
        ({"params": {"text_prompt": "a." * 20_000}}, 400, "at most 32,768 characters"),
        ({"params": {"text_prompt": "a cat", "conf_threshold": 2}}, 400, "expected 0 to 1"),
    ],
)  # fmt: skip
async def test_errors_have_the_clients_shape_and_are_logged(
    adapters: httpx.AsyncClient,
    model: str,
    photo: bytes,
    changed: dict[str, Any],
    status: int,
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    body = {**asked(model, photo), **changed}
    reply = await adapters.post(f"{PREFIX}/v1/predict", json=body)
    assert (reply.status_code, reply.json()["success"]) == (status, False)
    assert words in reply.json()["error"]["message"]
    (line,) = (line.getMessage() for line in caplog.records if line.levelname == "WARNING")
    assert words in line  # the client shows only the status
