"""The services and all adapters answer with checkpoints that ``samclip convert`` has made.

The tests of the adapters compare their answers with those of the service's own API.
"""

# ruff: noqa: F401 - pytest finds tests and fixtures that are imported

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from samclip.v1 import samclip_pb2 as pb

from samclip_core.io import image as pixels
from samclip_core.model import SamClip
from tests.converted import make_converted
from tests.in_process import Caller, png
from tests.unit.services.gateway.adapters.conftest import adapters, applications, clicked, photo
from tests.unit.services.gateway.adapters.test_label_studio import (
    test_clicks_and_a_box_give_a_brush,
    test_words_choose_and_find,
)
from tests.unit.services.gateway.adapters.test_open_inference import (
    expected,
    inputs,
    stub,
    test_both_ways_give_the_answers_of_our_own_api,
)
from tests.unit.services.gateway.adapters.test_openai import (
    info,
    model,
    model_id,
    test_texts_and_images_have_the_vectors_of_embed,
)
from tests.unit.services.gateway.adapters.test_x_anylabeling import (
    test_marks_give_the_polygons_of_our_own_api,
)
from tests.unit.services.test_local import IMAGE, REQUESTS, rpc_of

SAM2 = pytest.param("sam2", marks=pytest.mark.slow)
KINDS = ["radio", "mobile", "radio beside mobile", "efficientvit", SAM2]


@pytest.fixture(scope="module", params=KINDS)
def tiny_checkpoint(request: pytest.FixtureRequest, data_root: Path, tmp_path_factory) -> Path:
    return make_converted(
        request.param, data_root, tmp_path_factory.mktemp(request.param) / request.param
    )


@pytest.fixture(scope="module")
def tiny_model(tiny_checkpoint: Path) -> SamClip:
    return SamClip.load(tiny_checkpoint)


async def test_every_head_answers(tiny_checkpoint: Path, caller: Caller) -> None:
    for request in REQUESTS:
        if isinstance(request, pb.SegmentRequest) and request.prompts[0].HasField("mask_input"):
            continue  # its logits are those of another frame
        answer = await caller(rpc_of(request), request)
        if isinstance(request, pb.ListHeadsRequest):
            continue  # heads are those of the settings
        assert answer.model.name == tiny_checkpoint.name
        contents = {descriptor.name for descriptor, _ in answer.ListFields()}
        assert contents - {"model", "image"}, request


async def test_an_earlier_mask_is_a_prompt(caller: Caller, tiny_model: SamClip) -> None:
    prompt = pb.Prompt(points=[pb.Point(x=20, y=15)])
    request = pb.SegmentRequest(image=IMAGE, prompts=[prompt], encoding=pb.LOGITS)
    (first,) = (await caller("Segment", request)).results[0].masks
    assert first.HasField("object_score") is tiny_model.config.squash
    assert 0 <= first.object_score < 1
    request.prompts[0].mask_input.CopyFrom(first.logits)
    (second,) = (await caller("Segment", request)).results[0].masks
    assert second.logits.shape == first.logits.shape
    assert second.logits.data != first.logits.data


async def test_tiles_fill_a_frame_as_whole_pictures_do(
    caller: Caller, tiny_model: SamClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = list[np.ndarray]()

    def encode_png(image_HW3: np.ndarray) -> bytes:
        sent.append(image_HW3)
        return pixels.encode_png(image_HW3)

    ours = SimpleNamespace(decode=pixels.decode, encode_png=encode_png)
    monkeypatch.setattr("services.heads.runner.pixels", ours)
    tall = pixels.encode_png(np.random.default_rng(0).integers(0, 256, (3200, 1100, 3), np.uint8))
    request = pb.SegmentTextRequest(image=pb.Image(encoded=tall), labels=["sky", "sea"], tiles=2)
    await caller("SegmentText", request)
    assert len(sent) == 2
    side = tiny_model.config.size_of("semantic")
    assert all(max(tile.shape) == side for tile in sent)
    assert all((tile.shape[1] == side) == tiny_model.config.squash for tile in sent)


async def test_a_collection_finds_its_pictures(caller: Caller) -> None:
    items = [pb.IndexItem(id=str(red), image=pb.Image(encoded=png(red))) for red in (0, 255)]
    assert (await caller("Index", pb.IndexRequest(collection="it", items=items))).indexed == 2
    picture = pb.SearchRequest(collection="it", image=items[1].image, top_k=2)
    hits = (await caller("Search", picture)).hits
    assert (hits[0].id, hits[0].score) == ("255", pytest.approx(1, abs=1e-3))
    text = pb.SearchRequest(collection="it", text="a dog", top_k=2)
    assert {hit.id for hit in (await caller("Search", text)).hits} == {"0", "255"}
