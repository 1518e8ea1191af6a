"""A pair with EfficientViT-SAM's encoder against the answers of its publisher's own modules."""

import json
from pathlib import Path

import numpy as np
import pytest

from samclip_core.errors import InvalidRequest
from samclip_core.io import checkpoint
from samclip_core.model import SamClip
from samclip_core.types import Prompt
from tests.checkout import ROOT
from tests.converted import efficientvit_sam, make_pair
from tests.parity.comparison import HALF, assert_graph_agrees, assert_near

GOLDEN = json.loads((ROOT / "tests/golden/efficientvit_sam.json").read_text())
"""Values of the publisher's predictor (commit de7d773) at the places of ``assert_sampled``."""


@pytest.fixture(scope="module", params=["l0", "xl0"])
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def expected(variant: str, efficientvit_sam_tiny: Path) -> dict[str, np.ndarray]:
    return dict(np.load(efficientvit_sam_tiny / f"{variant}-tiny.npz"))


@pytest.fixture(scope="module")
def directory(variant: str, efficientvit_sam_tiny: Path, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp(variant)
    return make_pair(efficientvit_sam(variant, efficientvit_sam_tiny.parent, root), root / "pair")


@pytest.fixture(scope="module")
def model(directory: Path) -> SamClip:
    return SamClip.load(directory)


def assert_sampled(found: np.ndarray, expected_40: np.ndarray) -> None:
    """Compare an array with the 40 values that were stored of the original's."""
    places = np.random.default_rng(0).choice(found.size, 400, replace=False)[:40]
    assert_near(found.ravel()[places], expected_40, largest=np.abs(found).max())


def test_the_config_is_found_in_the_shapes(variant, model):
    config, size = model.config, model.config.networks["efficientvit"]
    side = {"l0": 512, "xl0": 1024}[variant]
    assert (config.image_size, config.grid, config.prompt_size) == (side, 64, 1024)
    assert (len(size.widths), size.head, size.neck_width) == ({"l0": 5, "xl0": 6}[variant], 16, 32)


def test_the_embedding_alone_and_in_a_batch(model, expected):
    pictures = [model.prepare(expected["image"]), model.prepare(expected["image"][:400, :200])]
    (alone,), batch = model.encode_batch(pictures[:1]), model.encode_batch(pictures)
    for found in (alone, batch[0]):
        assert_near(found.sam_Dhw, expected["embedding"][0], HALF)


def test_the_masks_of_a_point(model, expected):
    (answer,) = model.segment(expected["image"], [Prompt(points=(tuple(expected["point"]),))], True)
    order = np.argsort(-expected["iou"], kind="stable")
    assert_near(answer.logits_Mhw, expected["low_res"][order])
    assert_near(answer.predicted_iou_M, expected["iou"][order])


@pytest.mark.parametrize(("height", "width"), [(320, 480), (640, 227)])
def test_pictures_whose_two_frames_round_differently(variant, model, expected, height, width):
    """Half of the sides in the frame of 1024 are no whole pixels of the frame of 512."""
    golden = {k: np.array(v) for k, v in GOLDEN[f"{variant} {height}x{width}"].items()}
    image_HW3 = np.ascontiguousarray(np.tile(expected["image"], (2, 1, 1))[:height, :width])
    features = model.encode(image_HW3)
    assert_sampled(features.sam_Dhw, golden["embedding"])

    point = Prompt(points=((0.4 * width, 0.6 * height),))
    ((answer,),) = model.sam_head.decode_batch([(features, [point])], multimask=True)
    order = np.argsort(-golden["point_iou"], kind="stable")
    assert_sampled(answer.logits_Mhw[np.argsort(order)], golden["point_low_res"])
    assert_near(answer.predicted_iou_M, golden["point_iou"][order])

    box = Prompt(box=(0.1 * width, 0.2 * height, 0.8 * width, 0.9 * height))
    ((answer,),) = model.sam_head.decode_batch([(features, [box])], multimask=False)
    mask_HW = answer.geometry.logits_to_original(answer.logits_Mhw[0])
    assert_sampled(mask_HW, golden["box_mask"])
    assert_near(answer.predicted_iou_M, golden["box_iou"])


@pytest.mark.slow
def test_the_graph(directory, model, expected):
    assert_graph_agrees(directory, model, expected["image"])


def test_it_has_one_frame_for_masks(variant, efficientvit_sam_tiny, tmp_path):
    files = efficientvit_sam(variant, efficientvit_sam_tiny.parent, tmp_path), tmp_path / "pair"
    side = {"l0": 512, "xl0": 1024}[variant]
    with pytest.raises(InvalidRequest, match=f"SAM for frames of {side} pixels: give --sides 256"):
        make_pair(*files, sides=(256, 768))
    with pytest.raises(InvalidRequest, match="frame of 40 pixels: choose a positive multiple"):
        make_pair(*files, sides=(40, side))
    make_pair(*files, sides=(256, side))
    assert checkpoint.read_config(tmp_path / "pair").sizes == (side, 256)
    features = SamClip.load(tmp_path / "pair").encode(np.zeros((60, 90, 3), np.uint8), 256)
    assert features.sam_Dhw.shape[1:] == (256 * 64 // side,) * 2
