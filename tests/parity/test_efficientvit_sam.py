"""A pair with EfficientViT-SAM's encoder against the answers of its publisher's own modules."""

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from samclip_core.commands.convert import convert
from samclip_core.engine import graphs
from samclip_core.errors import InvalidRequest
from samclip_core.io import checkpoint
from samclip_core.model import SamClip
from samclip_core.nn.network import load_net
from samclip_core.types import Prompt
from tests.checkout import ROOT
from tests.clip_models import write_clip
from tests.converted import efficientvit_sam

TOLERANCE = 1e-4  # of the largest value
HALF = 2**-11  # relative error of the expected embedding, which is stored in float16
GOLDEN = json.loads((ROOT / "tests/golden/efficientvit_sam.json").read_text())
"""Values of the publisher's predictor (commit de7d773) at the places of ``sample``."""


@pytest.fixture(scope="module", params=["l0", "xl0"])
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def expected(variant: str, efficientvit_sam_tiny: Path) -> dict[str, np.ndarray]:
    return dict(np.load(efficientvit_sam_tiny / f"{variant}-tiny.npz"))


@pytest.fixture(scope="module")
def directory(variant: str, efficientvit_sam_tiny: Path, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp(variant)
    sam = efficientvit_sam(variant, efficientvit_sam_tiny.parent, root)
    convert(sam, f"local-dir:{write_clip(root / 'clip')}", root / "pair")
    return root / "pair"


@pytest.fixture(scope="module")
def model(directory: Path) -> SamClip:
    return SamClip.load(directory)


def assert_close(found: np.ndarray, expected: np.ndarray, largest: float, rtol: float = 0) -> None:
    assert np.std(expected) > 0 or np.size(expected) == 1
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * largest, rtol=rtol)


def sample(values: np.ndarray) -> np.ndarray:
    """Return the 40 values that were stored of an array of the original."""
    return values.ravel()[np.random.default_rng(0).choice(values.size, 400, replace=False)[:40]]


def test_the_config_is_found_in_the_shapes(variant, model):
    config, size = model.config, model.config.efficientvit
    side = {"l0": 512, "xl0": 1024}[variant]
    assert (config.image_size, config.grid, config.prompt_size) == (side, 64, 1024)
    assert (len(size.widths), size.head, size.neck_width) == ({"l0": 5, "xl0": 6}[variant], 16, 32)


def test_the_embedding_alone_and_in_a_batch(model, expected):
    pictures = [model.prepare(expected["image"]), model.prepare(expected["image"][:400, :200])]
    (alone,), batch = model.encode_batch(pictures[:1]), model.encode_batch(pictures)
    for found in (alone, batch[0]):
        want = expected["embedding"][0].astype(np.float32)
        assert_close(found.sam_Dhw, want, np.abs(want).max(), HALF)


def test_the_masks_of_a_point(model, expected):
    (answer,) = model.segment(expected["image"], [Prompt(points=(tuple(expected["point"]),))], True)
    order = np.argsort(-expected["iou"], kind="stable")
    for found, want in (
        (answer.logits_Mhw, expected["low_res"]),
        (answer.predicted_iou_M, expected["iou"]),
    ):
        assert_close(found, want[order], np.abs(want).max())


@pytest.mark.parametrize(("height", "width"), [(320, 480), (640, 227)])
def test_pictures_whose_two_frames_round_differently(variant, model, expected, height, width):
    """Half of the sides in the frame of 1024 are no whole pixels of the frame of 512."""
    golden = {k: np.array(v) for k, v in GOLDEN[f"{variant} {height}x{width}"].items()}
    image_HW3 = np.ascontiguousarray(np.tile(expected["image"], (2, 1, 1))[:height, :width])
    features = model.encode(image_HW3)
    assert_close(sample(features.sam_Dhw), golden["embedding"], np.abs(features.sam_Dhw).max())

    point = Prompt(points=((0.4 * width, 0.6 * height),))
    ((answer,),) = model.sam_head.decode_batch([(features, [point])], multimask=True)
    order = np.argsort(-golden["point_iou"], kind="stable")
    logits_Mhw = answer.logits_Mhw[np.argsort(order)]
    assert_close(sample(logits_Mhw), golden["point_low_res"], np.abs(logits_Mhw).max())
    assert_close(answer.predicted_iou_M, golden["point_iou"][order], golden["point_iou"].max())

    box = Prompt(box=(0.1 * width, 0.2 * height, 0.8 * width, 0.9 * height))
    ((answer,),) = model.sam_head.decode_batch([(features, [box])], multimask=False)
    mask_HW = answer.geometry.logits_to_original(answer.logits_Mhw[0])
    assert_close(sample(mask_HW), golden["box_mask"], np.abs(mask_HW).max())
    assert_close(answer.predicted_iou_M, golden["box_iou"], abs(golden["box_iou"][0]))


@pytest.mark.slow
def test_the_graph(directory, model, expected):
    pictures = [model.prepare(expected["image"]), model.prepare(expected["image"][:400, :200])]
    pixels = np.stack([p.pixels_3SS for p in pictures])
    sizes = np.array([(p.geometry.input_height, p.geometry.input_width) for p in pictures])
    ours = model.engine.encode(pixels, sizes)
    graph = ir.to_proto(graphs.image_encoder(load_net(directory), model.config.image_size))
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    outputs = session.run(None, {"pixels": pixels, "sizes": sizes})
    for found, want in zip(outputs, ours, strict=True):
        assert_close(found, want, np.abs(want).max())


def test_it_has_one_frame_for_masks(variant, efficientvit_sam_tiny, tmp_path):
    sam = efficientvit_sam(variant, efficientvit_sam_tiny.parent, tmp_path)
    tower, side = f"local-dir:{write_clip(tmp_path / 'clip')}", {"l0": 512, "xl0": 1024}[variant]
    with pytest.raises(InvalidRequest, match=f"SAM for frames of {side} pixels: give --sides 256"):
        convert(sam, tower, tmp_path / "pair", sides=(256, 768))
    with pytest.raises(InvalidRequest, match="frame of 40 pixels: choose a positive multiple"):
        convert(sam, tower, tmp_path / "pair", sides=(40, side))
    convert(sam, tower, tmp_path / "pair", sides=(256, side))
    assert checkpoint.read_config(tmp_path / "pair").sizes == (side, 256)
    features = SamClip.load(tmp_path / "pair").encode(np.zeros((60, 90, 3), np.uint8), 256)
    assert features.sam_Dhw.shape[1:] == (256 * 64 // side,) * 2
