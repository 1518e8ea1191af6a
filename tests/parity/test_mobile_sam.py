"""A pair with MobileSAM's encoder against the answers of MobileSAM's own modules."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from samclip_core.errors import InvalidRequest
from samclip_core.io import checkpoint
from samclip_core.model import SamClip
from samclip_core.types import Prompt
from tests.checkout import ROOT
from tests.converted import make_pair
from tests.official import small_sam, write
from tests.parity.comparison import HALF, assert_graph_agrees, assert_near, two


@pytest.fixture(scope="module")
def expected(mobile_sam: Path) -> dict[str, np.ndarray]:
    return dict(np.load(mobile_sam / "expected.npz"))


@pytest.fixture(scope="module")
def directory(mobile_sam: Path, tmp_path_factory) -> Path:
    """Convert MobileSAM and a small CLIP."""
    return make_pair(mobile_sam / "mobile_sam.pth", tmp_path_factory.mktemp("mobile") / "pair")


@pytest.fixture(scope="module")
def model(directory: Path) -> SamClip:
    return SamClip.load(directory)


def test_the_embedding(model, expected):
    assert model.config.backbone == "mobile-sam"
    assert_near(model.encode(expected["image"]).sam_Dhw, expected["embedding"], HALF)


def test_the_embedding_of_a_batch(model, expected):
    batch = model.engine.encode(*two(model, expected["image"]))
    assert_near(batch.sam_BDhw[0], expected["embedding"], HALF)


@pytest.mark.slow
def test_the_graph(directory, model, expected):
    assert_graph_agrees(directory, model, expected["image"])


def test_the_masks_of_a_point(model, expected):
    (answer,) = model.segment(expected["image"], [Prompt(points=(tuple(expected["point"]),))], True)
    best_first = np.argsort(-expected["point/iou"], kind="stable")
    assert_near(answer.logits_Mhw, expected["point/low_res"][best_first])
    assert_near(answer.predicted_iou_M, expected["point/iou"][best_first])


@pytest.fixture(scope="module")
def smaller(mobile_sam: Path, tmp_path_factory) -> SamClip:
    """Convert MobileSAM and a small CLIP for frames of 512 pixels for words, and 768 for masks."""
    out = tmp_path_factory.mktemp("smaller") / "pair"
    return SamClip.load(make_pair(mobile_sam / "mobile_sam.pth", out, sides=(512, 768)))


@pytest.mark.parametrize("side", [512, 768])
def test_smaller_frames(smaller, expected, side):
    """The golden values are of MobileSAM's encoder, whose code has its grid of 64 by 64 replaced.

    They are the first 200 of those that ``choice`` picks.
    """
    assert side in (smaller.config.image_size, smaller.config.size_of("classify"))
    image_HW3 = np.tile(expected["image"], (2, 2, 1))[: side * 3 // 4, :side]
    prepared = smaller.prepare(image_HW3, side)
    np.testing.assert_array_equal(
        prepared.pixels_3SS[:, : side * 3 // 4], image_HW3.transpose(2, 0, 1)
    )
    encoded = smaller.engine.encode(
        prepared.pixels_3SS[None], np.array([image_HW3.shape[:2]], np.int64)
    ).sam_BDhw
    places = np.random.default_rng(0).choice(encoded.size, 400, replace=False)[:200]
    golden = json.loads((ROOT / "tests/golden/mobile_sam_frames.json").read_text())[str(side)]
    assert_near(encoded.ravel()[places], np.array(golden))


def test_masks_of_a_smaller_frame(mobile_sam, smaller, expected):
    """SAM's own prompt encoder and mask decoder for that frame, after our encoder."""
    state = torch.load(mobile_sam / "mobile_sam.pth", weights_only=True)
    sam = small_sam(768)
    sam.load_state_dict({k: v for k, v in state.items() if "image_encoder" not in k}, strict=False)
    features = smaller.encode(expected["image"])  # 640 pixels wide
    point = tuple(expected["point"])
    (answer,) = smaller.segment(features, [Prompt(points=(point,))], True)
    with torch.inference_mode():
        frame = torch.tensor([[point]], dtype=torch.float32) * 768 / 640
        sparse, dense = sam.prompt_encoder((frame, torch.ones(1, 1)), None, None)
        logits, iou = sam.mask_decoder(
            image_embeddings=torch.from_numpy(features.sam_Dhw).float()[None],
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
    best_first = np.argsort(-iou[0].numpy(), kind="stable")
    assert_near(answer.logits_Mhw, logits[0].numpy()[best_first])
    assert_near(answer.predicted_iou_M, iou[0].numpy()[best_first])


def test_other_sams_have_one_frame_for_masks(tmp_path):
    files = write(small_sam(256), tmp_path, "sam.pth"), tmp_path / "pair"
    with pytest.raises(InvalidRequest, match="SAM for frames of 256 pixels: give --sides 128 256"):
        make_pair(*files, sides=(128, 192))
    with pytest.raises(InvalidRequest, match="a frame of 100 pixels: choose a positive multiple"):
        make_pair(*files, sides=(100, 256))
    make_pair(*files, sides=(128, 256))
    assert checkpoint.read_config(tmp_path / "pair").sizes == (256, 128)
