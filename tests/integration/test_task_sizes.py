"""A checkpoint whose tasks have sides of their own, through the backbone and all heads."""

from pathlib import Path

import pytest
from samclip.v1 import samclip_pb2 as pb

from samclip_core.config import TaskSizes
from samclip_core.encoder import Prepared
from samclip_core.io.image import image_key
from samclip_core.model import SamClip
from tests.in_process import png
from tests.tiny import make_tiny_checkpoint

SIZES = TaskSizes(classify=64, semantic=96, retrieval=80)
MASKS = 128
LABELS = ["dog", "grass", "cat"]
IMAGE = pb.Image(encoded=png())
POINT = pb.Prompt(points=[pb.Point(x=20, y=15)])


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("sizes") / "vit", "vit-b", task_sizes=SIZES)


@pytest.fixture(scope="module")
def tiny_model(tiny_checkpoint: Path) -> SamClip:
    return SamClip.load(tiny_checkpoint)


@pytest.fixture
def encoded(tiny_model: SamClip, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that receives the side of each image that the backbone encodes."""
    sides: list[int] = []
    whole = tiny_model.encode_batch

    def watched(batch: list[Prepared]) -> object:
        sides.extend(prepared.geometry.size for prepared in batch)
        return whole(batch)

    monkeypatch.setattr(tiny_model, "encode_batch", watched)
    return sides


async def test_each_side_is_encoded_once(caller, encoded):
    item = pb.IndexItem(id="a", image=IMAGE)
    texts = pb.SegmentTextRequest(image=IMAGE, labels=LABELS)
    refined = pb.SegmentTextRequest(image=IMAGE, labels=LABELS, refine=True)
    for rpc, request, side in (
        ("Segment", pb.SegmentRequest(image=IMAGE, prompts=[POINT]), MASKS),
        ("SegmentText", refined, None),
        ("Segment", pb.SegmentRequest(image=IMAGE, prompts=[pb.Prompt(text="dog")]), None),
        ("Classify", pb.ClassifyRequest(images=[IMAGE], labels=LABELS), SIZES.classify),
        ("SegmentText", texts, SIZES.semantic),
        ("Index", pb.IndexRequest(collection="pets", items=[item]), SIZES.retrieval),
        ("Search", pb.SearchRequest(collection="pets", image=IMAGE), None),
    ):
        encoded.clear()
        await caller(rpc, request)
        assert encoded == ([side] if side else []), rpc


async def test_a_key_counts_where_the_image_was_encoded_at_that_side(caller):
    image = pb.Image(key=image_key(png()))
    await caller("Segment", pb.SegmentRequest(image=IMAGE, prompts=[POINT]))
    await caller("Segment", pb.SegmentRequest(image=image, prompts=[POINT]))
    request = pb.ClassifyRequest(images=[image], labels=LABELS)
    code, message = await caller.refused("Classify", request)
    assert (code, "send the image" in message) == ("FAILED_PRECONDITION", True)


async def test_a_side_that_the_checkpoint_lacks_is_refused(caller):
    request = pb.EmbedRequest(image=IMAGE, outputs=[pb.CLIP_POOLED], size=112)
    code, message = await caller.refused("Embed", request)
    assert code == "INVALID_ARGUMENT"
    assert "at 128, 64, 96, 80 pixels, not 112" in message
