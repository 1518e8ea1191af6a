"""Comparison of our answers with those of segment_anything's SamPredictor."""

import numpy as np
from segment_anything import SamPredictor

from samclip_core.types import MaskSet, Prompt

LOGITS_TOLERANCE = 1e-3
MASK_IOU = 0.999


def prompts(height: int, width: int, mask_input_hw: np.ndarray) -> list[Prompt]:
    """Return prompts of every kind, and combinations of kinds, for a picture of this size."""
    inside, outside = (0.4 * width, 0.3 * height), (0.9 * width, 0.85 * height)
    box = (0.2 * width, 0.1 * height, 0.7 * width, 0.95 * height)
    return [
        Prompt(points=(inside,)),
        Prompt(points=(inside, outside, (0.0, 0.0)), negative=(False, True, True)),
        Prompt(box=box),
        Prompt(points=(outside,), negative=(True,), box=box),
        Prompt(mask_input_hw=mask_input_hw),
        Prompt(points=(inside,), box=box, mask_input_hw=mask_input_hw),
        Prompt(points=(outside, inside)),
    ]


def ask_official(
    predictor: SamPredictor, prompt: Prompt, multimask: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return masks, predicted IoU and low-resolution logits, best predicted IoU first."""
    negative = prompt.negative or (False,) * len(prompt.points)
    masks, iou, logits = predictor.predict(
        point_coords=np.array(prompt.points) if prompt.points else None,
        point_labels=np.array([int(not flag) for flag in negative]) if prompt.points else None,
        box=np.array(prompt.box) if prompt.box else None,
        mask_input=None if prompt.mask_input_hw is None else prompt.mask_input_hw[None],
        multimask_output=multimask,
    )
    order = np.argsort(-iou, kind="stable")
    return masks[order], iou[order], logits[order]


def assert_same_answer(ours: MaskSet, official: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """Check that the answers are equal within the tolerances, and not degenerate."""
    masks, iou, logits = official
    assert logits.std() > 2, "degenerate logits prove nothing"
    np.testing.assert_allclose(ours.logits_Mhw, logits, atol=LOGITS_TOLERANCE, rtol=0)
    np.testing.assert_allclose(ours.predicted_iou_M, iou, atol=LOGITS_TOLERANCE, rtol=0)
    assert ours.masks_MHW.shape == masks.shape
    for mask, expected in zip(ours.masks_MHW, masks, strict=True):
        union = np.count_nonzero(mask | expected)
        assert union == 0 or np.count_nonzero(mask & expected) / union >= MASK_IOU
