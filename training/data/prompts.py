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
    # First the row, then the column: numbering all cells of a batch would take most of its time.
    count_Pm = mask_Pmm.count_nonzero(dim=2)
    empty_P1 = (count_Pm == 0).all(dim=1, keepdim=True)
    count_Pm = count_Pm.masked_fill(empty_P1, mask_Pmm.shape[2])
    upto_Pm = count_Pm.cumsum(dim=1)
    rank_P1 = (chance_P * upto_Pm[:, -1]).long()[:, None]
    row_P1 = torch.searchsorted(upto_Pm, rank_P1, right=True)
    rank_P1 = rank_P1 - (upto_Pm - count_Pm).gather(1, row_P1)
    cells_Pm = mask_Pmm.take_along_dim(row_P1[:, :, None], dim=1)[:, 0] | empty_P1
    column_P1 = torch.searchsorted(cells_Pm.cumsum(dim=1), rank_P1, right=True)
    return cell * (torch.cat([column_P1, row_P1], dim=1) + 0.5)


def correction(
    logits_Pmm: Tensor, target_Pmm: Tensor, cell: float, chance_P: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the next click: a point where prediction and truth differ, and its label (int64)."""
    truth_Pmm = target_Pmm > 0.5
    points_P2 = points_in((logits_Pmm > 0) != truth_Pmm, cell, chance_P)
    column_P, row_P = (points_P2 / cell).long().unbind(1)
    labels_P = truth_Pmm[torch.arange(len(points_P2)), row_P, column_P].long()
    return points_P2, labels_P
