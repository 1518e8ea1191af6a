"""CVAT's serverless functions, called as nuclio calls them, in front of the real service."""

import base64
import importlib.util
import json
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import samclip
import yaml

from tests.checkout import ROOT
from tests.e2e.conftest import Service
from tests.http_server import Handler, serving

pytestmark = pytest.mark.e2e

FOLDER = ROOT / "deploy/cvat"


@dataclass
class Response:
    """The parts of nuclio's response that a function sets."""

    body: str
    headers: dict[str, str]
    content_type: str
    status_code: int


@pytest.fixture
def functions(service: Service, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("SAMCLIP_URL", service.url)
    monkeypatch.setenv("SAMCLIP_LABELS", "a cat, a rocket")
    return load()


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cvat_functions", FOLDER / "main.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(function: Any, photo: bytes, **fields: Any) -> Any:
    """Call a function as CVAT does: the image is base64, and nuclio has parsed the JSON."""
    body = {"image": base64.b64encode(photo).decode(), **fields}
    reply = function(SimpleNamespace(Response=Response), SimpleNamespace(body=body))
    assert (reply.status_code, reply.content_type) == (200, "application/json"), reply.body
    return json.loads(reply.body)


@pytest.mark.parametrize(
    ("included", "box"),
    [([[200, 150]], None), ([[200, 150]], [[15, 0], [385, 299]]), ([], [[15, 0], [385, 299]])],
)
def test_clicks_and_a_box_give_a_mask(
    functions: ModuleType, service: Service, photo: bytes, included: Any, box: Any
) -> None:
    excluded = [[5, 5]] if included else []
    asked = {"pos_points": included, "neg_points": excluded, "obj_bbox": box}
    found = call(functions.interact, photo, **asked)
    with samclip.Client(service.address) as client:
        flat = None if box is None else [*box[0], *box[1]]
        (mask,) = client.image(photo).segment(points=included, negative=excluded, box=flat)
    np.testing.assert_array_equal(np.array(found["mask"], bool), np.asarray(mask))
    x, y = np.array(found["points"]).T
    assert np.asarray(mask)[y, x].all()


def test_words_give_masks_in_their_boxes(
    functions: ModuleType, service: Service, photo: bytes
) -> None:
    found = call(functions.detect, photo)
    with samclip.Client(service.address) as client:
        things = client.image(photo).segment(text=["a cat", "a rocket"]).things
    masks = [best for best, *_ in things]
    assert [detected["label"] for detected in found] == [mask.label for mask in masks]
    assert found
    for detected, mask in zip(found, masks, strict=True):
        *pixels, left, top, right, bottom = detected["mask"]
        inside = np.array(pixels, bool).reshape(bottom - top + 1, right - left + 1)
        whole_HW = np.zeros_like(np.asarray(mask))
        whole_HW[top : bottom + 1, left : right + 1] = inside
        np.testing.assert_array_equal(whole_HW, np.asarray(mask))
        assert (detected["type"], len(detected["points"]) % 2) == ("mask", 0)
    assert call(functions.detect, photo, threshold=1) == []


def test_an_error_of_the_service_is_passed_on(
    functions: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"image": "AAAA", "pos_points": [[1, 1]], "neg_points": [], "obj_bbox": None}
    context, event = SimpleNamespace(Response=Response), SimpleNamespace(body=body)
    refused = functions.interact(context, event)
    assert (refused.status_code, json.loads(refused.body)["status"]) == (400, 400)
    monkeypatch.setenv("SAMCLIP_URL", "http://127.0.0.1:9")
    assert functions.interact(context, event).status_code == 503


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_does_not_lead_the_key_to_another_host(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    stolen = []

    class Thief(Handler):
        def do_POST(self) -> None:
            stolen.append(self.headers["x-api-key"])
            self.answer(status=404)

        do_GET = do_POST

    class Redirect(Handler):
        def do_POST(self) -> None:
            self.body()
            self.answer(status=status, location=f"{other}/segment")

    with serving(Thief) as other, serving(Redirect) as here:
        monkeypatch.setenv("SAMCLIP_URL", here)
        monkeypatch.setenv("SAMCLIP_API_KEY", "a key")
        body = {"image": "AAAA", "pos_points": [[1, 1]], "neg_points": [], "obj_bbox": None}
        context, event = SimpleNamespace(Response=Response), SimpleNamespace(body=body)
        refused = load().interact(context, event)
    assert not stolen
    assert (refused.status_code, refused.content_type) == (502, "text/plain")
    assert refused.body == f"{here}/segment redirects to {other}/segment: change SAMCLIP_URL"


@pytest.mark.parametrize("kind", ["interactor", "detector"])
def test_the_functions_are_declared_as_cvat_reads_them(kind: str) -> None:
    functions = load()
    declared = yaml.safe_load((FOLDER / kind / "function.yaml").read_text())
    about, spec = declared["metadata"]["annotations"], declared["spec"]
    assert about["type"] == kind
    assert int(spec["eventTimeout"].removesuffix("s")) > functions.TIMEOUT_S
    if kind == "interactor":  # as in CVAT's own for SAM: else its page sends no ``obj_bbox``
        assert (about["startswith_box_optional"], about["min_pos_points"]) == (True, 0)
    module, handler = spec["handler"].split(":")
    assert (FOLDER / f"{module}.py").exists()
    assert callable(getattr(functions, handler))
    labels = [label["name"] for label in json.loads(about["spec"] or "[]")]
    values = {one["name"]: one["value"] for one in spec["env"]}
    asked = values.get("SAMCLIP_LABELS", "")
    assert labels == [label.strip() for label in asked.split(",") if label]
