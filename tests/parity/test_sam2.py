"""SAM 2.1 tiny of official size, with weights from a seed, against its publisher's predictor."""

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import openvino
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import Sam2Config, Sam2Model

from samclip_core.answers.sam_head import SamHead
from samclip_core.config import SamClipConfig
from samclip_core.engine.graphs import trace
from samclip_core.engine.torch_engine import TorchEngine
from samclip_core.families.sam2 import SIZES as SAM2_SIZES
from samclip_core.families.sam2.network import _blocks
from samclip_core.geometry import Geometry
from samclip_core.nn.network import SAM_PARTS, SamClipNet, build
from samclip_core.nn.official_sam import read_sam, sam_config
from samclip_core.types import ImageFeatures, Prompt
from tests.parity.comparison import HALF, assert_near

pytestmark = pytest.mark.slow  # an image takes 3 s on two cores
Expected = dict[str, np.ndarray]
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "base_plus": {
        "backbone_config": {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": 112,
            "num_attention_heads": 2,
            "embed_dim_per_stage": [112, 224, 448, 896],
            "num_attention_heads_per_stage": [2, 4, 8, 16],
            "blocks_per_stage": [2, 3, 16, 3],
            "global_attention_blocks": [12, 16, 20],
            "window_positional_embedding_background_size": [14, 14],
        },
        "backbone_channel_list": [896, 448, 224, 112],
    },
    "large": {
        "backbone_config": {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": 144,
            "num_attention_heads": 2,
            "embed_dim_per_stage": [144, 288, 576, 1152],
            "num_attention_heads_per_stage": [2, 4, 8, 16],
            "blocks_per_stage": [2, 6, 36, 4],
            "global_attention_blocks": [23, 33, 43],
            "window_size_per_stage": [8, 4, 16, 8],
        },
        "backbone_channel_list": [1152, 576, 288, 144],
    },
}
"""Those of the published models, in transformers' words; tiny is its default."""


@pytest.fixture(scope="module")
def expected(sam2_seeded: Path) -> Expected:
    return dict(np.load(sam2_seeded / "expected.npz"))


@pytest.fixture(scope="module")
def state(sam2_seeded: Path) -> dict[str, torch.Tensor]:
    given = json.loads((sam2_seeded / "shapes.json").read_text())
    seeded = runpy.run_path(str(sam2_seeded / "weights.py"))["seeded"]
    made = seeded(given["shapes"], given["seed"])
    return {key: torch.from_numpy(value) for key, value in made.items()}


@pytest.fixture(scope="module")
def head(state: dict[str, torch.Tensor], tmp_path_factory) -> SamHead:
    file = tmp_path_factory.mktemp("sam2") / "sam2.1_hiera_tiny.pt"
    torch.save({"model": state}, file)
    return loaded(file)


def loaded(file: Path) -> SamHead:
    read = read_sam(file)
    config = sam_config(read)
    net = build(config, SAM_PARTS).eval().requires_grad_(False)
    net.load_state_dict(read)
    return SamHead(config, TorchEngine(net, None))


def encoded(head: SamHead, image_HW3: np.ndarray) -> ImageFeatures:
    """Encode a picture as the original does, which resizes in float."""
    assert isinstance(head.engine, TorchEngine)
    net: SamClipNet = head.engine.net
    config: SamClipConfig = head.config
    side = config.image_size
    pixels_13HW = torch.from_numpy(image_HW3.copy()).permute(2, 0, 1)[None] / 255
    pixels_13SS = 255 * F.interpolate(pixels_13HW, (side, side), mode="bilinear", antialias=True)
    with torch.inference_mode():
        found = net.image_encoder(pixels_13SS, torch.tensor([[side, side]]))
    geometry = Geometry(*image_HW3.shape[:2], side, config.squash)
    return ImageFeatures(geometry, found.sam_BDhw[0].numpy(), fine_Dhw=found.fine_BDhw[0].numpy())


@pytest.fixture(scope="module")
def features(head: SamHead, expected: Expected) -> ImageFeatures:
    return encoded(head, expected["image"])


def test_the_maps(features: ImageFeatures, expected: Expected) -> None:
    assert_near(features.output("SAM"), expected["image_embed"], HALF, 1e-5)
    fine_1Dhw = torch.from_numpy(features.output("SAM_FINE"))[None]
    assert_near(F.pixel_shuffle(fine_1Dhw[0, :256], 2), expected["high_res_s1"], HALF, 1e-5)
    assert_near(F.pixel_shuffle(fine_1Dhw[0, 256:], 4), expected["high_res_s0"], HALF, 1e-5)


def test_a_point(head: SamHead, features: ImageFeatures, expected: Expected) -> None:
    """Three masks, or one: the first mask is not stable, so it is the best of the three."""
    for multimask, name in ((True, "point"), (False, "point_single")):
        asked = features, [Prompt(points=((320, 240),))]
        ((found,),) = head.decode_batch([asked], multimask)
        order = np.argsort(-expected[f"{name}_iou"], kind="stable")
        assert_near(found.predicted_iou_M, expected[f"{name}_iou"][order], 1e-5)
        assert_near(found.logits_Mhw.clip(-32, 32), expected[f"{name}_low_res"][order])


def test_an_earlier_mask(head: SamHead, features: ImageFeatures, expected: Expected) -> None:
    """The first mask is not stable, so the best of the others answers."""
    best_hw = expected["point_low_res"][expected["point_iou"].argmax()]
    ((found,),) = head.decode_batch([(features, [Prompt(mask_input_hw=best_hw)])], multimask=False)
    assert_near(found.logits_Mhw.clip(-32, 32), expected["mask_low_res"])
    assert_near(found.predicted_iou_M, expected["mask_iou"])


def test_a_tall_picture(head: SamHead, expected: Expected) -> None:
    """Squashed to a square: the masks cover it without a crop of padding."""
    tall = encoded(head, expected["image"][:, 200:360])
    assert_near(tall.output("SAM"), expected["tall_embed"], HALF, 1e-5)
    ((found,),) = head.decode_batch([(tall, [Prompt(points=((80, 300),))])])
    order = np.argsort(-expected["tall_iou"], kind="stable")
    assert_near(found.predicted_iou_M, expected["tall_iou"][order])
    assert_near(found.logits_Mhw.clip(-32, 32), expected["tall_low_res"][order])
    theirs = np.unpackbits(expected["tall_masks_bits"])[: 3 * 480 * 160].reshape(3, 480, 160) > 0
    assert (found.enlarge_all().masks_MHW == theirs[order]).mean() > 0.9999


@pytest.mark.parametrize("block", [1, 3, 10])
def test_openvino_halves_a_map_as_pytorch_does(block: int, tmp_path: Path) -> None:
    """Where it had as many heads as queries, it took one for the other."""
    attention = _blocks(SAM2_SIZES[96, (1, 2, 7, 2)])[block].attn.eval().requires_grad_(False)
    torch.nn.init.normal_(attention.qkv.weight, std=0.1)
    side = {1: 8, 3: 4, 10: 14}[block]
    windows_KhwD = torch.randn(64, side, side, attention.qkv.in_features)
    model = trace(attention, {"x_KhwD": windows_KhwD}, ("attended",), {})
    onnx_ir.save(model, tmp_path / "attention.onnx")
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(tmp_path / "attention.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    (found_KhwD,) = compiled([windows_KhwD.numpy()]).values()
    assert found_KhwD == pytest.approx(attention(windows_KhwD).numpy(), abs=1e-4)


@pytest.mark.parametrize(("size", "seed"), [("tiny", 1), ("base_plus", 2), ("large", 3)])
def test_a_box_with_a_point_in_transformers_layout(
    size: str, seed: int, sam2_seeded: Path, tmp_path: Path
) -> None:
    """Its prompt encoder appends padding beside a box, as the publisher's does."""
    seeded = runpy.run_path(str(sam2_seeded / "weights.py"))["seeded"]
    theirs = Sam2Model(Sam2Config(vision_config=SIZES[size])).eval()
    made = seeded({key: value.shape for key, value in theirs.state_dict().items()}, seed)
    state = {key: torch.from_numpy(value) for key, value in made.items()}
    shared = "prompt_encoder.shared_embedding.positional_embedding"
    state[shared] = state["shared_image_embedding.positional_embedding"]
    theirs.load_state_dict(state)
    save_file({key: value.clone() for key, value in state.items()}, tmp_path / "model.safetensors")
    head = loaded(tmp_path / "model.safetensors")

    image_HW3 = np.random.default_rng(0).integers(0, 256, (512, 1024, 3), np.uint8)
    ours = encoded(head, image_HW3)
    pixels = head.engine.net.image_encoder.pixels
    given = torch.from_numpy(image_HW3.copy()).permute(2, 0, 1)[None] / 255
    given = 255 * F.interpolate(given, (1024, 1024), mode="bilinear", antialias=True)
    with torch.inference_mode():
        maps = theirs.get_image_embeddings(pixels(given, torch.tensor([[1024, 1024]])))
        answer = theirs(
            image_embeddings=maps,
            input_boxes=torch.tensor([[[100.0, 200.0, 700.0, 900.0]]]),
            input_points=torch.tensor([[[[400.0, 500.0]]]]),
            input_labels=torch.tensor([[[1]]]),
            multimask_output=True,
        )
    assert_near(ours.output("SAM"), maps[-1][0].numpy())
    prompt = Prompt(points=((400, 250),), box=(100, 100, 700, 450))
    ((found,),) = head.decode_batch([(ours, [prompt])])
    order = np.argsort(-answer.iou_scores[0, 0].numpy(), kind="stable")
    assert_near(found.predicted_iou_M, answer.iou_scores[0, 0].numpy()[order])
    assert_near(found.logits_Mhw, answer.pred_masks[0, 0].numpy()[order])
    score = answer.object_score_logits.sigmoid().item()
    assert found.object_score == pytest.approx(score, abs=1e-4)
