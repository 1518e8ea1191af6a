import numpy as np
import pytest
import torch

from training.distillation.segmentation import click_rounds, correction, noised, points_in

CELL = 4.0


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def normal(boxes_P4: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(boxes_P4.shape, generator=generator)


def two_parts() -> torch.Tensor:
    mask_mm = torch.zeros(12, 16, dtype=torch.bool)
    mask_mm[2:5, 3:10] = True
    mask_mm[8, 12] = True
    return mask_mm


def test_a_hand_misses_a_box_by_a_tenth_of_its_side_but_never_far(generator):
    boxes_P4 = torch.tensor([[100.0, 150.0, 200.0, 250.0], [0.0, 0.0, 1000.0, 1000.0]])
    many_P4 = boxes_P4[:, None].expand(2, 4000, 4).reshape(-1, 4)
    off_2N4 = (noised(many_P4, 10_000, normal(many_P4, generator)) - many_P4).view(2, 4000, 4)
    inside_2N4 = off_2N4[:, :, 2:]  # the corner that the frame does not clip
    assert inside_2N4.mean(dim=(1, 2)).abs().max() < 1
    torch.testing.assert_close(
        inside_2N4.std(dim=(1, 2)), torch.tensor([10.0, 20.0]), rtol=0.05, atol=0
    )


def test_noised_boxes_stay_in_the_frame(generator):
    boxes_P4 = torch.tensor([[0.0, 0.0, 384.0, 384.0]]).repeat(100, 1)
    noised_P4 = noised(boxes_P4, 384, normal(boxes_P4, generator))
    assert noised_P4.min() == 0
    assert noised_P4.max() == 384


def test_chances_select_every_cell_of_the_mask_equally_often():
    mask_Pmm = two_parts().expand(2200, -1, -1)
    points_P2 = points_in(mask_Pmm, CELL, (torch.arange(2200, dtype=torch.float64) + 0.5) / 2200)
    assert (points_P2 % CELL == CELL / 2).all()
    column_P, row_P = (points_P2 / CELL).long().unbind(1)
    hits_mm = torch.zeros(12, 16)
    hits_mm.index_put_((row_P, column_P), torch.ones(2200), accumulate=True)
    assert torch.equal(hits_mm, two_parts() * 100.0)  # 22 cells


def test_the_ends_of_chance_are_inside():
    ends_P = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    points_P2 = points_in(two_parts().expand(2, -1, -1), 1.0, ends_P)
    assert points_P2.tolist() == [[3.5, 2.5], [12.5, 8.5]]


def test_where_there_is_no_mask_a_point_may_be_anywhere():
    nothing_Pmm = torch.zeros(6, 2, 3, dtype=torch.bool)
    points_P2 = points_in(nothing_Pmm, 2.0, torch.arange(6) / 6 + 0.01)
    assert {(x, y) for x, y in points_P2.tolist()} == {(x, y) for x in (1, 3, 5) for y in (1, 3)}


def test_every_mask_has_a_point_of_its_own():
    mask_Pmm = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask_Pmm[0, 1, 2] = mask_Pmm[1, 3, 0] = True
    assert points_in(mask_Pmm, 1.0, torch.zeros(2)).tolist() == [[2.5, 1.5], [0.5, 3.5]]


def test_two_rounds_of_eleven_only_feed_the_mask_back_one_of_them_last():
    """As in SAM's training: a first prompt, eight clicks, two rounds without a click."""
    places = set()
    for seed in range(60):
        rounds = click_rounds(np.random.default_rng(seed), 8, refined=True)
        assert (len(rounds), sum(rounds), rounds[-1]) == (10, 8, False)
        places.add(rounds.index(False))
    assert places == set(range(9))
    assert click_rounds(np.random.default_rng(0), 3, refined=False) == (True, True, True)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_correction_is_a_click_where_the_answer_is_wrong(generator, label: float):
    """A false positive gets a negative click, a false negative a positive click."""
    target_mm = two_parts()
    wrong_mm = torch.zeros_like(target_mm)
    wrong_mm[3, 3:7] = label == 1
    wrong_mm[10, 1:4] = label == 0
    logits_Pmm = torch.where(target_mm ^ wrong_mm, 1.0, -1.0).expand(100, -1, -1)
    target_Pmm = target_mm.float().expand(100, -1, -1)
    points_P2, labels_P = correction(
        logits_Pmm, target_Pmm, CELL, torch.rand(100, generator=generator)
    )
    column_P, row_P = (points_P2 / CELL).long().unbind(1)
    assert wrong_mm[row_P, column_P].all()
    assert (labels_P == label).all()


def test_each_correction_belongs_to_its_own_mask(generator):
    target_Pmm = torch.zeros(3, 8, 8)
    logits_Pmm = torch.full((3, 8, 8), -1.0)
    target_Pmm[0, 1, 2] = 1  # false negative
    logits_Pmm[1, 6, 5] = 1  # false positive
    points_P2, labels_P = correction(
        logits_Pmm, target_Pmm, 1.0, torch.rand(3, generator=generator)
    )
    assert points_P2[:2].tolist() == [[2.5, 1.5], [5.5, 6.5]]
    assert labels_P.tolist() == [1, 0, 0]  # the third was right: any click is negative


def test_a_right_answer_is_confirmed_by_a_click_that_tells_the_truth(generator):
    target_mm = two_parts()
    logits_Pmm = torch.where(target_mm, 1.0, -1.0).expand(50, -1, -1)
    points_P2, labels_P = correction(
        logits_Pmm, target_mm.float().expand(50, -1, -1), CELL, torch.rand(50, generator=generator)
    )
    column_P, row_P = (points_P2 / CELL).long().unbind(1)
    assert torch.equal(labels_P == 1, target_mm[row_P, column_P])
