"""Simulate the clicks and boxes of a person for a mask (Segment Anything, appendix A).

P prompts, m m cells of a mask. Coordinates are pixels of the model frame.
"""

import numpy as np
import torch
from torch import Tensor

NOISE = 0.1  # standard deviation as a share of the box's side, at most 20 pixels


def noised(boxes_P4: Tensor, size: int, normal_P4: Tensor) -> Tensor:
    """Return imprecisely drawn boxes: each side moves by ``normal_P4`` times its spread."""
    sides_P2 = boxes_P4[:, 2:] - boxes_P4[:, :2]
    spread_P4 = (NOISE * sides_P2).clamp(max=20).repeat(1, 2)
    return (boxes_P4 + normal_P4 * spread_P4).clamp(0, size)


def click_rounds(rng: np.random.Generator, clicks: int, refined: bool) -> tuple[bool, ...]:
    """Return for each round after the first prompt whether it adds a click.

    With ``refined``, two more rounds only feed the mask back: one at a random place, one last.
    """
    rounds = [True] * clicks
    if refined:
        rounds.insert(int(rng.integers(clicks + 1)), False)
        rounds.append(False)
    return tuple(rounds)


def points_in(mask_Pmm: Tensor, cell: float, chance_P: Tensor) -> Tensor:
    """Return points x, y, uniform over the cells of boolean masks.

    ``chance_P``, uniform in [0, 1), selects the cells. In an empty mask, every cell of the frame is
    equally likely.
    """
    inside_PL = mask_Pmm.flatten(1)
    inside_PL = inside_PL | ~inside_PL.any(dim=1, keepdim=True)
    counted_PL = inside_PL.cumsum(dim=1)
    rank_P = (chance_P * counted_PL[:, -1]).long()
    index_P = torch.searchsorted(counted_PL, rank_P[:, None], right=True)[:, 0]
    column_P, row_P = index_P % mask_Pmm.shape[2], index_P // mask_Pmm.shape[2]
    return cell * (torch.stack([column_P, row_P], dim=1) + 0.5)


def correction(
    logits_Pmm: Tensor, target_Pmm: Tensor, cell: float, chance_P: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the next click: a point where prediction and truth differ, and its label (int64)."""
    truth_Pmm = target_Pmm > 0.5
    points_P2 = points_in((logits_Pmm > 0) != truth_Pmm, cell, chance_P)
    column_P, row_P = (points_P2 / cell).long().unbind(1)
    labels_P = truth_Pmm[torch.arange(len(points_P2)), row_P, column_P].long()
    return points_P2, labels_P
