"""The losses of the merge, as pure functions of tensors.

M masks, m m cells of a mask, B images, D width, h w grid.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.recipes import Dice


def clip_loss(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Return L_CLIP, one minus the cosine of two embeddings (paper, equation 1). Shape ``B``."""
    return 1 - F.cosine_similarity(student_BD, teacher_BD, dim=-1)


def dense_loss(student_BDhw: Tensor, teacher_BDhw: Tensor, valid_Bhw: Tensor) -> Tensor:
    """Return one minus the cosine of patches: the mean over valid cells, then over images."""
    loss_Bhw = (1 - F.cosine_similarity(student_BDhw, teacher_BDhw, dim=1)) * valid_Bhw
    return (loss_Bhw.sum(dim=(1, 2)) / valid_Bhw.sum(dim=(1, 2))).mean()


def name_loss(logits_BLhw: Tensor, share_BLhw: Tensor) -> Tensor:
    """Return the cross-entropy of cells, with each class weighted by its share of the cell.

    The mean is taken over each image's covered area, then over images.
    """
    entropy_B = -(share_BLhw * logits_BLhw.log_softmax(dim=1)).sum(dim=(1, 2, 3))
    return (entropy_B / share_BLhw.sum(dim=(1, 2, 3)).clamp(min=1)).mean()


NEAR = 0.02
"""Difference of probabilities below which ``dice_loss`` is quadratic: a few times the rounding
error of masks in bfloat16."""


def dice_loss(logits_Mmm: Tensor, target_Mmm: Tensor, form: Dice = "semimetric") -> Tensor:
    """Return the Dice loss to the probabilities ``target_Mmm``, smoothed by one cell. Shape ``M``.

    For hard targets both forms are, within ``NEAR``, one minus the Dice overlap. The ``product`` is
    SAM's. The ``semimetric`` loss, DML1 of arXiv 2303.16296, is also lowest at a soft target; the
    absolute difference is rounded below ``NEAR`` (smooth L1): its gradient is the sign of the
    difference, of full length even where a student that starts as its teacher differs from it by
    rounding alone.
    """
    probability_Mmm = logits_Mmm.sigmoid()
    total_M = (probability_Mmm + target_Mmm).sum(dim=(-2, -1))
    if form == "product":
        overlap_M = (probability_Mmm * target_Mmm).sum(dim=(-2, -1))
        return 1 - (2 * overlap_M + 1) / (total_M + 1)
    difference_Mmm = F.smooth_l1_loss(probability_Mmm, target_Mmm, reduction="none", beta=NEAR)
    return difference_Mmm.sum(dim=(-2, -1)) / (total_M + 1)


def focal_loss(
    logits_Mmm: Tensor, target_Mmm: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Return binary cross-entropy weighted by the distance from soft targets. Shape ``M``.

    With hard targets this is the focal loss with RetinaNet's α, as in the 20:1 mixture that SAM
    took from DETR. With a teacher's probabilities the weight is zero where student and teacher
    agree, as distillation requires; α follows the target in a line.
    """
    entropy_Mmm = F.binary_cross_entropy_with_logits(logits_Mmm, target_Mmm, reduction="none")
    distance_Mmm = (logits_Mmm.sigmoid() - target_Mmm).abs()
    balance_Mmm = alpha * target_Mmm + (1 - alpha) * (1 - target_Mmm)
    return (balance_Mmm * distance_Mmm**gamma * entropy_Mmm).mean(dim=(-2, -1))


def soft_iou(logits_Mmm: Tensor, target_Mmm: Tensor) -> Tensor:
    """Return the IoU of predicted and target masks, both thresholded at 0.5. Shape ``M``."""
    mask_Mmm, truth_Mmm = logits_Mmm > 0, target_Mmm > 0.5
    overlap_M = (mask_Mmm & truth_Mmm).sum(dim=(-2, -1))
    return overlap_M / (mask_Mmm | truth_Mmm).sum(dim=(-2, -1)).clamp(min=1)


def sam_loss(logits_P4mm: Tensor, iou_P4: Tensor, target_Pmm: Tensor) -> Tensor:
    """Return the loss on human outlines.

    Mask 0 is always trained; of the three alternatives only the best one is, so that they
    specialise (Segment Anything, section 3). Cross-entropy and Dice are weighted 1:4: the 20:1
    focal mixture starts much more slowly from random weights, and more cross-entropy gives blunter
    edges. The IoU head regresses the true overlap.
    """
    target_P4mm = target_Pmm[:, None].expand_as(logits_P4mm)
    entropy_P4mm = F.binary_cross_entropy_with_logits(logits_P4mm, target_P4mm, reduction="none")
    mask_P4 = entropy_P4mm.mean(dim=(-2, -1)) / 4 + dice_loss(logits_P4mm, target_P4mm)
    masks = mask_P4[:, 0].mean() + mask_P4[:, 1:].amin(dim=1).mean()
    with torch.no_grad():
        truth_P4 = soft_iou(logits_P4mm, target_P4mm)
    return masks + F.mse_loss(iou_P4, truth_P4)


def sam_distillation_loss(
    logits_P4mm: Tensor,
    iou_P4: Tensor,
    teacher_P4mm: Tensor,
    teacher_iou_P4: Tensor,
    dice: Dice = "semimetric",
) -> Tensor:
    """Return L_SAM, focal and Dice 20:1 against the teacher's masks (paper, equation 2).

    Each mask follows the teacher's mask of the same index, the IoU head the teacher's prediction.
    ``teacher_P4mm`` are logits.
    """
    target_P4mm = teacher_P4mm.sigmoid()
    focal_P4 = focal_loss(logits_P4mm, target_P4mm)
    masks = (20 * focal_P4 + dice_loss(logits_P4mm, target_P4mm, dice)).mean()
    return masks + F.mse_loss(iou_P4, teacher_iou_P4)
