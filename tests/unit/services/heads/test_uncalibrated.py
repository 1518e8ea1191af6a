"""A checkpoint to which nobody has fitted anything answers, and says that it is uncalibrated."""

from pathlib import Path
from typing import Any

import pytest
from samclip.v1 import samclip_pb2 as pb

from samclip_core.model import SamClip
from services.heads.backbone_client import BackboneClient
from tests.in_process import Caller, png
from tests.tiny import make_tiny_checkpoint

IMAGE = pb.Image(encoded=png(width=80, height=60))
LABELS = ["a dog", "a cat", "grass"]
REQUESTS = {
    "Segment": pb.SegmentRequest(image=IMAGE, prompts=[pb.Prompt(text="a dog")], min_score=0),
    "SegmentEverything": pb.SegmentEverythingRequest(image=IMAGE, labels=LABELS),
    "Classify": pb.ClassifyRequest(images=[IMAGE], labels=LABELS),
    "SegmentText": pb.SegmentTextRequest(image=IMAGE, labels=LABELS),
    "Explain": pb.ExplainRequest(image=IMAGE, label="a dog", others=LABELS[1:]),
    "Embed": pb.EmbedRequest(image=IMAGE),
}


@pytest.fixture(scope="module")
def uncalibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("plain") / "tiny", calibration=None)


@pytest.fixture
def tiny_checkpoint(uncalibrated: Path) -> Path:
    return uncalibrated


@pytest.fixture
def tiny_model(uncalibrated: Path) -> SamClip:
    return SamClip.load(uncalibrated)


async def test_every_reply_says_so(caller: Caller) -> None:
    for rpc, request in REQUESTS.items():
        assert (await caller(rpc, request)).model.uncalibrated, rpc


async def test_maps_without_attention_fetch_no_sam_embedding(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched, features = [], BackboneClient.features

    async def spy(self: BackboneClient, *arguments: Any, **options: Any) -> Any:
        fetched.append(arguments[2:])
        return await features(self, *arguments, **options)

    monkeypatch.setattr(BackboneClient, "features", spy)
    for rpc in ("SegmentText", "Explain"):
        await caller(rpc, REQUESTS[rpc])
    assert fetched == [(pb.CLIP_DENSE,)] * 2


async def test_the_service_and_the_library_answer_alike(
    caller: Caller, tiny_model: SamClip
) -> None:
    assert tiny_model.config.uncalibrated
    reply = await caller("Segment", REQUESTS["Segment"])
    (found,) = tiny_model.find(IMAGE.encoded, "a dog", min_score=0)
    scores = [mask.label_score for mask in reply.results[0].masks]
    assert scores == pytest.approx([mask.label_score for mask in found], abs=1e-3)
    everything = await caller("SegmentEverything", REQUESTS["SegmentEverything"])
    masks = tiny_model.segment_everything(IMAGE.encoded, labels=LABELS)
    assert everything.masks
    assert len(everything.masks) == len(masks)
    assert all(
        mask.label for mask in everything.masks
    )  # no share was fitted below which it has none
