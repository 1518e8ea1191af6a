"""A checkpoint whose tasks have sides of their own, through the backbone and all heads."""

from pathlib import Path

import numpy as np
import pytest
from samclip.v1 import samclip_pb2 as pb

from samclip_core.config import TaskSizes
from samclip_core.encoder import Prepared
from samclip_core.io import checkpoint
from samclip_core.io.image import image_key
from samclip_core.io.masks import decode_label_map
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


async def test_every_answer_is_the_librarys_at_the_side_of_its_task(caller, tiny_model, encoded):
    found = await caller("Classify", pb.ClassifyRequest(images=[IMAGE], labels=LABELS))
    similarities = {score.label: score.similarity for score in found.results[0].scores}
    expected = {score.label: score.similarity for score in tiny_model.classify(png(), LABELS)}
    assert similarities == pytest.approx(expected, abs=1e-3)
    found = await caller("SegmentText", pb.SegmentTextRequest(image=IMAGE, labels=LABELS))
    map_HW = tiny_model.segment_text(png(), LABELS).label_map_HW
    assert (decode_label_map(found.label_map_png) == map_HW).mean() > 0.98
    request = pb.EmbedRequest(image=IMAGE, outputs=[pb.CLIP_POOLED], inline=True)
    (vector,) = (await caller("Embed", request)).tensors
    vector_D = np.frombuffer(vector.data, np.float16)
    np.testing.assert_allclose(vector_D, tiny_model.embed_image(png()), atol=1e-3)
    sides = [SIZES.classify, SIZES.semantic, SIZES.retrieval]
    assert [side for side in encoded if side in sides] == [side for side in sides for _ in "12"]


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


def test_vectors_of_another_side_belong_to_another_model(tiny_checkpoint, tmp_path):
    """Collections compare digests, so they refuse vectors of another side."""
    sizes = TaskSizes(classify=64, semantic=96, retrieval=64)
    other = make_tiny_checkpoint(tmp_path / "other", "vit-b", task_sizes=sizes)
    assert checkpoint.digest(other) != checkpoint.digest(tiny_checkpoint)
