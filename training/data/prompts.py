"""Simulate the clicks and boxes of a person for a mask (Segment Anything, appendix A).

P prompts, m m cells of a mask. Coordinates are pixels of the model frame.
"""

import cv2
import numpy as np
import torch
from torch import Tensor

NOISE = 0.1  # standard deviation as a share of the box's side, at most 20 pixels


def noised(boxes_P4: Tensor, size: int, normal_P4: Tensor) -> Tensor:
    """Return imprecisely drawn boxes: each side moves by ``normal_P4`` times its spread."""
    sides_P2 = boxes_P4[:, 2:] - boxes_P4[:, :2]
    spread_P4 = (NOISE * sides_P2).clamp(max=20).repeat(1, 2)
    return (boxes_P4 + normal_P4 * spread_P4).clamp(0, size)


def point_in(mask_mm: Tensor, cell: float, chance: float) -> Tensor:
    """Return the point x, y of a boolean mask that ``chance``, uniform in [0, 1), selects.

    A cell's probability grows with its distance from the mask's edge, because people click the
    middle of an object. In an empty mask, every cell of the frame is equally likely.
    """
    inside_mm = np.pad(mask_mm.cpu().numpy(), 1).astype(np.uint8)
    depth_mm = cv2.distanceTransform(inside_mm, cv2.DIST_L2, 3)[1:-1, 1:-1]
    if not depth_mm.any():
        depth_mm = np.ones(mask_mm.shape)
    cumulative = depth_mm.cumsum(dtype=np.float64)
    chosen = int(np.searchsorted(cumulative, chance * cumulative[-1], side="right"))
    row, column = divmod(chosen, mask_mm.shape[1])
    return torch.tensor([cell * (column + 0.5), cell * (row + 0.5)], device=mask_mm.device)


def correction(
    logits_Pmm: Tensor, target_Pmm: Tensor, cell: float, chance_P: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the next click: a point where prediction and truth differ, and its label."""
    truth_Pmm = target_Pmm > 0.5
    wrong_Pmm = (logits_Pmm > 0) != truth_Pmm
    chances = zip(wrong_Pmm, chance_P.tolist(), strict=True)
    points_P2 = torch.stack([point_in(wrong, cell, chance) for wrong, chance in chances])
    column_P, row_P = (points_P2 / cell).long().unbind(1)
    labels_P = truth_Pmm[torch.arange(len(points_P2)), row_P, column_P].float()
    return points_P2, labels_P
