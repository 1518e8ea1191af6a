"""The SAM head on random features: single prompts, batches, and invalid prompts."""

import numpy as np
import pytest
import torch
from segment_anything.utils.amg import calculate_stability_score
from torch.nn import functional as F

from samclip_core.answers.sam_head import SamHead
from samclip_core.engine import load
from samclip_core.errors import InvalidPrompt
from samclip_core.geometry import Geometry
from samclip_core.io import checkpoint
from samclip_core.types import ImageFeatures, MaskSet, Prompt
from tests.tiny import make_tiny_checkpoint

PROMPTS = [
    Prompt(points=((10, 20),)),
    Prompt(points=((40, 30), (12, 50)), negative=(False, True)),
    Prompt(box=(5, 5, 45, 50)),
    Prompt(points=((20, 20),), box=(5, 5, 45, 50)),
    Prompt(points=((50, 20), (1, 1), (30, 30)), negative=(False, True, False)),
    Prompt(points=((11, 21),)),
]


@pytest.fixture(scope="module", params=["edge", "vit-b"])
def head(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SamHead:
    directory = tmp_path_factory.mktemp("checkpoints") / request.param
    make_tiny_checkpoint(directory, request.param)
    return SamHead(checkpoint.read_config(directory), load(directory, parts=["mask_decoder"]))


def _features(head: SamHead, height: int, width: int, seed: int = 0) -> ImageFeatures:
    config = head.config
    shape = (config.embed_dim, config.grid, config.grid)
    sam_Dhw = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return ImageFeatures(Geometry(height, width, config.image_size), sam_Dhw)


def _mask_prompt(head: SamHead) -> Prompt:
    side = 4 * head.config.grid
    logits_hw = np.random.default_rng(3).normal(size=(side, side)).astype(np.float32)
    return Prompt(box=(15, 0, 50, 33), mask_input_hw=logits_hw)


def _prompts(head: SamHead) -> list[Prompt]:
    return [*PROMPTS, _mask_prompt(head)]


def _assert_same(one: MaskSet, other: MaskSet) -> None:
    scale = np.abs(one.logits_Mhw).max()
    assert np.abs(one.logits_Mhw - other.logits_Mhw).max() <= 1e-4 * scale
    assert np.abs(one.predicted_iou_M - other.predicted_iou_M).max() <= 1e-4
    assert np.mean(one.masks_MHW != other.masks_MHW) <= 1e-3


@pytest.mark.parametrize("multimask", [True, False])
def test_prompts_together_equal_prompts_alone(head: SamHead, multimask: bool) -> None:
    features = _features(head, 60, 55)
    together = head.segment(features, _prompts(head), multimask)
    for prompt, answer in zip(_prompts(head), together, strict=True):
        _assert_same(answer, head.segment(features, [prompt], multimask)[0])


def test_best_first_with_sams_masks_and_stability(head: SamHead) -> None:
    features = _features(head, 60, 95)
    (answer,) = head.segment(features, PROMPTS[:1])
    assert list(answer.predicted_iou_M) == sorted(answer.predicted_iou_M, reverse=True)
    side = head.config.image_size
    frame_1MSS = F.interpolate(
        torch.from_numpy(answer.logits_Mhw)[None], (side, side), mode="bilinear"
    )
    geometry = features.geometry
    valid = frame_1MSS[..., : geometry.input_height, : geometry.input_width]
    logits_MHW = F.interpolate(valid, (60, 95), mode="bilinear")[0]
    assert np.mean(answer.masks_MHW != (logits_MHW > 0).numpy()) <= 1e-3
    expected_M = calculate_stability_score(logits_MHW, 0.0, 1.0)
    np.testing.assert_allclose(answer.stability_M, expected_M, atol=2e-3)


def test_an_answer_refines_the_next(head: SamHead) -> None:
    features = _features(head, 60, 55)
    (first,) = head.segment(features, PROMPTS[:1], multimask=False)
    again = Prompt(points=PROMPTS[0].points, mask_input_hw=first.logits_Mhw[0])
    (second,) = head.segment(features, [again], multimask=False)
    assert np.abs(first.logits_Mhw - second.logits_Mhw).max() > 1e-2


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no prompts"),
        ([Prompt()], "empty"),
        ([PROMPTS[0], Prompt(points=((56, 3),))], "outside"),
        ([Prompt(box=(9, 9, 3, 3))], "inverted"),
        ([Prompt(mask_input_hw=np.zeros((8, 8), np.float32))], r"this model's logits are"),
    ],
)
def test_what_cannot_be_answered(head: SamHead, prompts: list[Prompt], message: str) -> None:
    with pytest.raises(InvalidPrompt, match=message):
        head.segment(_features(head, 60, 55), prompts)


def test_features_without_sams_embedding(head: SamHead) -> None:
    with pytest.raises(ValueError, match="no SAM embedding"):
        head.segment(ImageFeatures(Geometry(60, 55, head.config.image_size)), PROMPTS[:1])
