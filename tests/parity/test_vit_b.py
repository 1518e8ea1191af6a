"""The full SAM ViT-B at 1024 pixels against SamPredictor, on one photograph."""

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor, build_sam_vit_b

from samclip_core.answers.sam_head import SamHead
from samclip_core.config import VIT_B
from samclip_core.engine.torch_engine import TorchEngine
from samclip_core.geometry import Geometry
from samclip_core.nn.network import SAM_HEAD_PARTS, build
from samclip_core.types import ImageFeatures
from tests.official import sharpened
from tests.parity.comparison import ask_official, assert_same_answer, prompts
from tests.weights import seeded

pytestmark = pytest.mark.slow
SIZE = (300, 450)


@pytest.fixture(scope="module")
def answers(photograph) -> tuple[SamPredictor, SamHead, ImageFeatures]:
    """Return the official predictor, and our head and features of the same photograph."""
    image = photograph(*SIZE)
    official = sharpened(seeded(build_sam_vit_b, 5))
    net = build(VIT_B, ("image_encoder", *SAM_HEAD_PARTS)).eval()
    net.load_state_dict(official.state_dict())
    geometry = Geometry(*SIZE, VIT_B.image_size)
    pixels_B3SS = torch.from_numpy(geometry.resize(image))[None].float()
    sizes_B2 = torch.tensor([[geometry.input_height, geometry.input_width]])
    with torch.inference_mode():
        sam_Dhw = net.image_encoder(pixels_B3SS, sizes_B2).sam_BDhw[0].numpy()
    predictor = SamPredictor(official)
    predictor.set_image(image)
    head = SamHead(VIT_B, TorchEngine(net, None))
    return predictor, head, ImageFeatures(geometry, sam_Dhw)


def test_image_embedding(answers):
    predictor, _, features = answers
    expected = predictor.get_image_embedding()[0].numpy()
    assert expected.std() > 0.5
    np.testing.assert_allclose(features.sam_Dhw, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("multimask", [True, False], ids=["multimask", "single"])
def test_masks(answers, multimask):
    predictor, head, features = answers
    asked = prompts(*SIZE, np.random.default_rng(0).normal(0, 5, (256, 256)).astype(np.float32))
    for prompt, answer in zip(asked, head.segment(features, asked, multimask), strict=True):
        assert_same_answer(answer, ask_official(predictor, prompt, multimask))
