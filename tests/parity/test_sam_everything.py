"""Our search for everything against segment_anything's SamAutomaticMaskGenerator."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam
from torch import nn

from samclip_core.answers.everything import EverythingSettings, Search
from samclip_core.answers.sam_head import SamHead
from samclip_core.answers.steps import Terms, run
from samclip_core.config import VIT_B
from samclip_core.engine.base import PromptBatch
from samclip_core.geometry import Geometry
from samclip_core.types import ImageFeatures
from tests.parity.conftest import Photograph, Small, convert_small

MATCH = 0.98  # IoU of a mask with the same mask of the other
SIDE, FRAME = 8, 256


def unmatched(masks: list[np.ndarray], others: list[np.ndarray]) -> int:
    """Return how many masks have no equal among the others."""
    rows_MN, columns_KN = (
        np.stack([mask.reshape(-1) for mask in side]).astype(np.float32) for side in (masks, others)
    )
    common_MK = rows_MN @ columns_KN.T
    union_MK = rows_MN.sum(1)[:, None] + columns_KN.sum(1) - common_MK
    return int(((common_MK / union_MK).max(axis=1) < MATCH).sum())


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected)
    assert unmatched(found, expected) == unmatched(expected, found) == 0


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """Convert a model with a smaller frame and decoder than SAM's, for hundreds of clicks."""
    return convert_small(tmp_path_factory, image_size=FRAME, width=64)


def test_every_mask_of_random_weights_is_sams(small: Small, photograph: Photograph) -> None:
    """The boxes of noise are all alike, so none is suppressed here."""
    image = photograph(170, 250)
    every = SamAutomaticMaskGenerator(
        small.predictor.model,
        points_per_side=SIDE,
        pred_iou_thresh=0,
        stability_score_thresh=0,
        box_nms_thresh=1,
    ).generate(image)
    limits = [
        float(np.quantile([one[name] for one in every], 0.3))
        for name in ("predicted_iou", "stability_score")
    ]
    expected = [
        one["segmentation"]
        for one in every
        if one["predicted_iou"] > limits[0] and one["stability_score"] >= limits[1]
    ]
    settings = EverythingSettings(min_predicted_iou=limits[0], min_stability=limits[1], max_iou=1)
    search = Search(Terms.of(small.model.sam_head, 7), settings)
    for steps in search.rounds(small.model.encode(image), SIDE):
        run(steps, small.model.sam_head)
    assert 20 < len(expected) < len(every)
    assert_same([one.mask.mask_HW for one in search.found], expected)


class Blobs(nn.Module):
    """Encoder, prompt encoder and mask decoder of a SAM that answers a click with three blobs.

    Their places, sizes and predicted IoU are pseudorandom, and depend on the click alone.
    """

    img_size = FRAME
    image_embedding_size = (FRAME // 16, FRAME // 16)

    def forward(self, *args: torch.Tensor, **asked: Any) -> Any:
        if args:  # the image encoder
            return torch.zeros(1, 8, FRAME // 16, FRAME // 16)
        if "points" in asked:  # the prompt encoder
            return asked["points"][0], None
        logits_PMmm, iou_PM = blobs(asked["sparse_prompt_embeddings"][:, 0].numpy())
        return torch.from_numpy(logits_PMmm[:, 1:]), torch.from_numpy(iou_PM[:, 1:])

    def get_dense_pe(self) -> None:
        return None


class BlobEngine:
    """The same as an engine."""

    device = "cpu"

    def decode(self, _: np.ndarray, prompts: PromptBatch) -> tuple[np.ndarray, np.ndarray]:
        return blobs(prompts.points_PN2[:, 0])


def blobs(points_P2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return logits P×4×m×m and predicted IoU P×4, float32, for clicks in the model frame."""
    side = FRAME // 4
    grid_m = np.arange(side) + 0.5
    logits, scores = [], []
    for point in np.round(points_P2 * 8).astype(int):
        random = np.random.default_rng(abs(point).tolist())
        x, y = point[:, None] / 32 + random.normal(0, 6, (2, 4))
        a, b = random.uniform(2, 22, (2, 4))
        distance_4mm = ((grid_m - x[:, None, None]) / a[:, None, None]) ** 2
        distance_4mm = distance_4mm + ((grid_m[:, None] - y[:, None, None]) / b[:, None, None]) ** 2
        steepness_4 = random.uniform(3, 60, 4)[:, None, None]
        logits.append(steepness_4 * (1 - np.sqrt(distance_4mm)))
        scores.append(random.uniform(0.5, 1, 4))
    return np.stack(logits).astype(np.float32), np.stack(scores).astype(np.float32)


@pytest.mark.parametrize("size", [(170, 250), (256, 120)], ids=str)
def test_the_kept_masks_are_sams(size: tuple[int, int]) -> None:
    part = Blobs()
    official = SamAutomaticMaskGenerator(
        Sam(part, part, part),
        points_per_side=SIDE,
        points_per_batch=7,
        pred_iou_thresh=0.7,
        stability_score_thresh=0.8,
    )
    image = np.zeros((*size, 3), np.uint8)
    expected = [one["segmentation"] for one in official.generate(image)]

    settings = EverythingSettings(min_predicted_iou=0.7, min_stability=0.8)
    search = Search(Terms(0, 0, 10), settings)
    config = replace(VIT_B, image_size=FRAME)
    head = SamHead(config, BlobEngine())
    features = ImageFeatures(Geometry(*size, FRAME), np.zeros((8, 16, 16), np.float16))
    for steps in search.rounds(features, SIDE):
        run(steps, head)
    assert len(expected) > 20
    assert_same([one.mask.mask_HW for one in search.found], expected)
