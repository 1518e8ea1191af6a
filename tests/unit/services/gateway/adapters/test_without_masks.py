"""The adapters in front of a checkpoint without a mask decoder: what they offer, and refuse."""

from pathlib import Path

import httpx
import pytest

from samclip_core.model import SamClip
from services.gateway.adapters.label_studio.routes import PREFIX as LABEL_STUDIO
from services.gateway.adapters.x_anylabeling.routes import PREFIX as X_ANYLABELING
from tests.tiny import WITHOUT_MASKS, make_tiny_checkpoint
from tests.unit.services.gateway.adapters.conftest import READY, uri

CHOICES = '<Choices name="c" toName="i"><Choice value="cat"/><Choice value="dog"/></Choices>'
BRUSH = '<BrushLabels name="b" toName="i"><Label value="cat"/></BrushLabels>'
VIEW = '<View><Image name="i" value="$image"/>{}</View>'
SAYS = "'tiny-v4' makes no masks"


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("v4") / "tiny"
    return make_tiny_checkpoint(made, "radio", **WITHOUT_MASKS)


@pytest.fixture(scope="module")
def tiny_model(tiny_checkpoint: Path) -> SamClip:
    return SamClip.load(tiny_checkpoint)


async def test_x_anylabeling_shows_it(adapters: httpx.AsyncClient, photo: bytes) -> None:
    listed = (await adapters.get(f"{X_ANYLABELING}/v1/models")).json()["data"]
    assert listed["tiny-v4"]["display_name"].endswith("tiny-v4, no masks")
    asked = {"model": "tiny-v4", "image": uri(photo), "params": {"text_prompt": "cat"}}
    reply = await adapters.post(f"{X_ANYLABELING}/v1/predict", json=asked)
    assert (reply.status_code, SAYS in reply.json()["error"]["message"]) == (400, True)


async def test_label_studio_takes_choices_alone(adapters: httpx.AsyncClient, photo: bytes) -> None:
    for controls, status in ((CHOICES, 200), (BRUSH, 400), (CHOICES + BRUSH, 400)):
        reply = await adapters.post(f"{LABEL_STUDIO}/setup", json={"schema": VIEW.format(controls)})
        assert (reply.status_code, SAYS in reply.text) == (status, status == 400)
    asked = {"label_config": VIEW.format(CHOICES), "tasks": [{"data": {"image": uri(photo)}}]}
    reply = await adapters.post(f"{LABEL_STUDIO}/predict", json=asked)
    assert reply.json()["results"][0]["result"][0]["value"]["choices"]


async def test_the_open_inference_model_for_masks_is_not_ready(
    adapters: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = {"ready": True, "model": {"without_masks": True}}
    for application in ("segmentation", "classification"):
        monkeypatch.setitem(READY.reports, application, about)
    for model, status in (("segment", 503), ("classify", 200)):
        assert (await adapters.get(f"/v2/models/{model}/ready")).status_code == status
    assert (await adapters.get("/v2/health/ready")).status_code == 200
