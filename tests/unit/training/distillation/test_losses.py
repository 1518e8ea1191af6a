import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from training.distillation.losses import (
    NEAR,
    clip_loss,
    dense_loss,
    dice_loss,
    focal_loss,
    sam_distillation_loss,
    sam_loss,
    soft_iou,
)

SURE = 30.0  # a logit whose probability is 1 in float32


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_clip_loss_is_one_minus_the_cosine():
    student_BD = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 3.0], [-1.0, 0.0]])
    teacher_BD = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    expected_B = torch.tensor([0.0, 1 - math.sqrt(0.5), 1.0, 2.0])
    torch.testing.assert_close(clip_loss(student_BD, teacher_BD), expected_B)


def test_patches_count_only_where_there_is_image_and_images_count_the_same():
    student_BDhw, teacher_BDhw = noise(2, 5, 2, 2), noise(2, 5, 2, 2, seed=1)
    valid_Bhw = torch.tensor([[[True, True], [False, False]], [[True, True], [True, True]]])
    cosine_Bhw = (F.normalize(student_BDhw, dim=1) * F.normalize(teacher_BDhw, dim=1)).sum(dim=1)
    expected = ((1 - cosine_Bhw[0, 0]).mean() + (1 - cosine_Bhw[1]).mean()) / 2
    torch.testing.assert_close(dense_loss(student_BDhw, teacher_BDhw, valid_Bhw), expected)


@pytest.mark.parametrize("form", ["semimetric", "product"])
def test_dice_of_hand_counted_masks(form: str):
    target_Mmm = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]).repeat(3, 1, 1)
    answers = [[[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[-1, -1], [1, 1]]]
    loss_M = dice_loss(SURE * torch.tensor(answers, dtype=torch.float32), target_Mmm, form)
    # Dice is (2 · overlap + 1) / (sum + 1); both masks have two cells.
    expected_M = 1 - torch.tensor([5 / 5, 3 / 5, 1 / 5])
    torch.testing.assert_close(loss_M, expected_M, rtol=0, atol=NEAR)


def test_dice_of_two_empty_masks_is_zero():
    loss_M = dice_loss(torch.full((1, 4, 4), -SURE), torch.zeros(1, 4, 4))
    torch.testing.assert_close(loss_M, torch.zeros(1))


@given(st.lists(st.floats(0.02, 0.98), min_size=4, max_size=4), st.integers(0, 99))
def test_dice_is_lowest_at_a_soft_target(target: list[float], seed: int):
    target_Mmm = torch.tensor(target).view(1, 2, 2)
    at_target = dice_loss(target_Mmm.logit(), target_Mmm)
    assert at_target == pytest.approx(0, abs=1e-6)
    assert dice_loss(target_Mmm.logit() + noise(1, 2, 2, seed=seed), target_Mmm) > at_target


def test_the_product_of_soft_masks_is_sams():
    """SAM's public loss: one minus (2 Σpt + 1) / (Σp + Σt + 1); it is not lowest at the target."""
    target_Mmm = torch.tensor([[[0.5, 0.25], [1.0, 0.0]]])
    logits_Mmm = torch.tensor([[[0.0, 0.0], [SURE, -SURE]]])
    loss_M = dice_loss(logits_Mmm, target_Mmm, "product")
    torch.testing.assert_close(loss_M, torch.tensor([1 - (2 * 1.375 + 1) / (2.0 + 1.75 + 1)]))


@given(st.floats(-12, 12), st.integers(0, 99))
def test_dice_does_not_learn_from_rounding_errors(middle: float, seed: int):
    """Its gradient vanishes at the target; that of the plain absolute difference jumps there."""
    target_Mmm = (middle + noise(1, 8, 8, seed=seed)).sigmoid()
    logits_Mmm = target_Mmm.logit(eps=1e-7) + 1e-6 * noise(1, 8, 8, seed=seed + 1)
    far_Mmm = (logits_Mmm + 2.0).requires_grad_()
    logits_Mmm.requires_grad_()
    dice_loss(logits_Mmm, target_Mmm).sum().backward()
    assert logits_Mmm.grad.norm() < 1e-4
    dice_loss(far_Mmm, target_Mmm).sum().backward()
    assert logits_Mmm.grad.norm() < 1e-2 * far_Mmm.grad.norm()


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal_with_hard_targets_is_the_published_one(gamma: float):
    logits_Mmm, target_Mmm = 3 * noise(5, 7, 7), (noise(5, 7, 7, seed=1) > 0).float()
    published = sigmoid_focal_loss(logits_Mmm, target_Mmm, alpha=0.25, gamma=gamma)
    torch.testing.assert_close(
        focal_loss(logits_Mmm, target_Mmm, gamma=gamma), published.mean(dim=(-2, -1))
    )


def test_focal_vanishes_with_its_gradient_where_student_and_teacher_agree():
    logits_Mmm = noise(2, 4, 4).requires_grad_()
    loss_M = focal_loss(logits_Mmm, logits_Mmm.detach().sigmoid())
    loss_M.sum().backward()
    assert not loss_M.any()
    assert not logits_Mmm.grad.any()


def test_iou_counts_cells_and_is_zero_for_nothing():
    logits_Mmm = torch.tensor([[[1.0, 1.0], [-1.0, -1.0]], [[-1.0, -1.0], [-1.0, -1.0]]])
    target_Mmm = torch.tensor([[[0.9, 0.2], [0.6, 0.4]], [[0.0, 0.0], [0.1, 0.0]]])
    torch.testing.assert_close(soft_iou(logits_Mmm, target_Mmm), torch.tensor([1 / 3, 0.0]))


def test_only_the_single_mask_and_the_best_alternative_learn():
    target_Pmm = (noise(2, 6, 6) > 0).float()
    logits_P4mm = noise(2, 4, 6, 6, seed=1)
    for prompt, best in enumerate((3, 1)):
        logits_P4mm[prompt, best] = 2 * (2 * target_Pmm[prompt] - 1)
    logits_P4mm.requires_grad_()
    sam_loss(logits_P4mm, torch.zeros(2, 4), target_Pmm).backward()
    learns_P4 = logits_P4mm.grad.abs().sum(dim=(-2, -1)) > 0
    assert learns_P4.tolist() == [[True, False, False, True], [True, True, False, False]]


def test_sam_loss_adds_up_for_one_prompt():
    target_Pmm = torch.zeros(1, 2, 2)
    target_Pmm[0, 0] = 1
    right, wrong = SURE * (2 * target_Pmm - 1), SURE * (1 - 2 * target_Pmm)
    logits_P4mm = torch.stack([wrong, wrong, right, wrong], dim=1)
    iou_P4 = torch.tensor([[0.5, 0.0, 0.5, 0.0]])
    loss = sam_loss(logits_P4mm, iou_P4, target_Pmm)
    # Mask 0 is all wrong: cross-entropy 30 per cell, weighted by a quarter, and Dice 1 - 1/5,
    # whose differences of 1 lose half of NEAR. The best mask is right; the true overlaps are 0, 0,
    # 1, 0.
    assert float(loss) == pytest.approx(SURE / 4 + 0.8 * (1 - NEAR / 2) + 0.0 + (0.25 + 0.25) / 4)


def test_the_iou_head_learns_and_the_masks_do_not_learn_from_it():
    logits_P4mm, iou_P4 = noise(1, 4, 4, 4), torch.full((1, 4), 0.5).requires_grad_()
    target_Pmm = torch.ones(1, 4, 4)
    sam_loss(logits_P4mm, iou_P4, target_Pmm).backward()
    truth_P4 = soft_iou(logits_P4mm, target_Pmm[:, None].expand_as(logits_P4mm))
    torch.testing.assert_close(iou_P4.grad, 2 * (0.5 - truth_P4) / 4)


def test_distillation_is_twenty_focal_one_dice_and_the_quality():
    student_P4mm, teacher_P4mm = noise(2, 4, 5, 5), noise(2, 4, 5, 5, seed=1)
    iou_P4 = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.5, 0.5]])
    taught_P4 = torch.tensor([[0.9, 0.2, 0.1, 0.3], [0.1, 0.4, 0.8, 0.3]])
    loss = sam_distillation_loss(student_P4mm, iou_P4, teacher_P4mm, taught_P4)
    target_P4mm = teacher_P4mm.sigmoid()
    pairs = [(student_P4mm[p, m], target_P4mm[p, m]) for p in range(2) for m in range(4)]
    expected = sum(20 * focal_loss(a, b) + dice_loss(a, b) for a, b in pairs) / 8
    assert float(loss) == pytest.approx(float(expected + F.mse_loss(iou_P4, taught_P4)))
