"""Simulated prompts: what a person would click or draw for a mask (Segment Anything, appendix A).

P prompts, m m cells of a mask. Coordinates are pixels of the model frame.
"""

import torch
from torch import Tensor

NOISE = 0.1  # of the box's side, at most 20 pixels


def box_of(mask_mm: Tensor, cell: float) -> Tensor:
    """The tight box x0, y0, x1, y1 of a boolean mask whose cells are ``cell`` pixels wide."""
    rows, columns = mask_mm.any(dim=1).nonzero(), mask_mm.any(dim=0).nonzero()
    return cell * torch.stack([columns[0, 0], rows[0, 0], columns[-1, 0] + 1, rows[-1, 0] + 1])


def noised(boxes_P4: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Boxes as a hurried hand draws them."""
    sides_P2 = boxes_P4[:, 2:] - boxes_P4[:, :2]
    spread_P4 = (NOISE * sides_P2).clamp(max=20).repeat(1, 2)
    noise_P4 = torch.randn(boxes_P4.shape, generator=generator) * spread_P4
    return (boxes_P4 + noise_P4).clamp(0, size)


def random_point(mask_mm: Tensor, cell: float, generator: torch.Generator) -> Tensor:
    """A point x, y, uniform over a boolean mask (over the frame where the mask is empty)."""
    cells = mask_mm.flatten().nonzero()[:, 0]
    if not len(cells):
        cells = torch.arange(mask_mm.numel())
    chosen = cells[torch.randint(len(cells), (), generator=generator)]
    side = mask_mm.shape[1]
    return cell * (torch.stack([chosen % side, chosen // side]) + 0.5)


def correction(
    logits_Pmm: Tensor, target_Pmm: Tensor, cell: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The next click: a point of the region where prediction and truth differ, and its label."""
    truth_Pmm = target_Pmm > 0.5
    wrong_Pmm = (logits_Pmm > 0) != truth_Pmm
    points_P2 = torch.stack([random_point(wrong, cell, generator) for wrong in wrong_Pmm])
    column_P, row_P = (points_P2 / cell).long().unbind(1)
    labels_P = truth_Pmm[torch.arange(len(points_P2)), row_P, column_P].float()
    return points_P2, labels_P
