"""A pair with MobileSAM's encoder against the answers of MobileSAM's own modules."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from samclip_core.commands.convert import convert
from samclip_core.engine import graphs
from samclip_core.model import SamClip
from samclip_core.nn.network import load_net
from samclip_core.types import Prompt
from tests.clip_models import add_small_clip
from tests.official import clip, write

TOLERANCE = 1e-4  # of the largest value
HALF = 2**-11  # relative error of the expected embedding, which is stored in float16


@pytest.fixture(scope="module")
def expected(mobile_sam: Path) -> dict[str, np.ndarray]:
    return dict(np.load(mobile_sam / "expected.npz"))


@pytest.fixture(scope="module")
def directory(mobile_sam: Path, tmp_path_factory) -> Path:
    """Convert MobileSAM and a small CLIP."""
    root = tmp_path_factory.mktemp("mobile")
    name = add_small_clip(root)
    file = write(clip(name), root, "clip.bin")
    convert(mobile_sam / "mobile_sam.pth", f"{name}:{file}", root / "pair")
    return root / "pair"


@pytest.fixture(scope="module")
def model(directory: Path) -> SamClip:
    return SamClip.load(directory)


def assert_close(found: np.ndarray, expected: np.ndarray, rtol: float = 0) -> None:
    expected = expected.astype(np.float32)
    assert expected.std() > 0
    atol = TOLERANCE * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=atol, rtol=rtol)


def frames(model: SamClip, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a batch of the image and of its upper left part."""
    pictures = [model.prepare(image), model.prepare(image[:400, :200])]
    pixels = np.stack([p.pixels_3SS for p in pictures])
    sizes = [(p.geometry.input_height, p.geometry.input_width) for p in pictures]
    return pixels, np.array(sizes, np.int64)


def test_the_embedding(model, expected):
    assert model.config.backbone == "mobile-sam"
    assert_close(model.encode(expected["image"]).sam_Dhw, expected["embedding"], HALF)


def test_the_embedding_of_a_batch_and_of_the_graph(directory, model, expected):
    pixels, sizes = frames(model, expected["image"])
    batch = model.engine.encode(pixels, sizes)
    assert_close(batch.sam_BDhw[0], expected["embedding"], HALF)
    graph = ir.to_proto(graphs.image_encoder(load_net(directory), model.config.image_size))
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    for found, ours in zip(
        session.run(None, {"pixels": pixels, "sizes": sizes}), batch, strict=True
    ):
        assert_close(found, ours)


def test_the_masks_of_a_point(model, expected):
    (answer,) = model.segment(expected["image"], [Prompt(points=(tuple(expected["point"]),))], True)
    best_first = np.argsort(-expected["point/iou"], kind="stable")
    assert_close(answer.logits_Mhw, expected["point/low_res"][best_first])
    assert_close(answer.predicted_iou_M, expected["point/iou"][best_first])


def test_a_smaller_frame_needs_no_other_weights(directory):
    """Positions are relative, within windows, so that only ``image_size`` differs."""
    encoder = load_net(directory, ["image_encoder"]).image_encoder
    with torch.inference_mode():
        sam = encoder(torch.zeros(1, 3, 512, 512), torch.tensor([[512, 300]])).sam_BDhw
    assert sam.shape == (1, 256, 32, 32)
