import numpy as np
import pytest

from training.evaluation.measures import (
    box_around,
    centre,
    class_iou,
    class_pixels,
    iou,
    mean_iou,
    ranks,
)


def test_the_overlap_of_hand_counted_masks():
    a_HW = np.array([[1, 1, 0], [0, 0, 0]], bool)
    b_HW = np.array([[0, 1, 1], [0, 1, 0]], bool)
    assert iou(a_HW, b_HW) == 1 / 4
    assert iou(a_HW, a_HW) == 1
    assert iou(a_HW, ~a_HW) == 0
    assert iou(np.zeros_like(a_HW), np.zeros_like(a_HW)) == 0


def test_pixels_are_counted_per_class_without_those_of_no_class():
    truth_HW = np.array([[2, 2, 7], [7, 255, 0]], np.uint8)
    answer_HW = np.array([[0, 1, 1], [1, 0, 1]])
    assert class_pixels(truth_HW, answer_HW, [2, 7]).tolist() == [[1, 2], [2, 2], [1, 3]]


def test_a_picture_without_any_class_counts_nothing():
    nothing_HW = np.zeros((2, 2), np.uint8)
    assert class_pixels(nothing_HW, nothing_HW.astype(int), [1, 2, 5]).tolist() == [[0] * 3] * 3


# Class 0: 3 of 4 found, 1 false positive. Class 1: 1 of 2 found. Class 2 is only predicted, class 3
# is neither.
PIXELS_3C = np.array([[3, 1, 0, 0], [4, 2, 0, 0], [4, 1, 1, 0]])


def test_mean_iou_is_over_the_classes_that_the_rule_counts():
    assert mean_iou(PIXELS_3C) == pytest.approx((3 / 5 + 1 / 2) / 2)
    assert mean_iou(PIXELS_3C, "union") == pytest.approx((3 / 5 + 1 / 2 + 0) / 3)


def test_the_iou_of_a_class_that_nobody_knows_is_undefined():
    np.testing.assert_allclose(class_iou(PIXELS_3C), [3 / 5, 1 / 2, 0, np.nan])
    several_N3C = np.stack([PIXELS_3C, 2 * PIXELS_3C])
    np.testing.assert_allclose(class_iou(several_N3C), [class_iou(PIXELS_3C)] * 2)


def test_a_box_ends_after_its_last_pixel():
    mask_HW = np.zeros((6, 8), np.bool_)
    mask_HW[2:4, 3:7] = True
    mask_HW[5, 4] = True
    assert box_around(mask_HW) == (3, 2, 7, 6)


def test_the_centre_is_the_middle_of_the_innermost_pixel():
    mask_HW = np.zeros((9, 12), np.bool_)
    mask_HW[1:6, 2:7] = True  # its centre is pixel (4, 3)
    mask_HW[8, 10] = True
    assert centre(mask_HW) == (4.5, 3.5)


def test_the_edge_of_the_picture_is_an_edge():
    assert centre(np.ones((5, 5), np.bool_)) == (2.5, 2.5)
    assert centre(np.ones((1, 1), np.bool_)) == (0.5, 0.5)


def test_the_centre_of_a_ring_lies_on_it():
    y, x = np.ogrid[:41, :41]
    distance_HW = np.hypot(y - 20, x - 20)
    ring_HW = (distance_HW < 18) & (distance_HW > 10)
    column, row = centre(ring_HW)
    assert ring_HW[int(row), int(column)]


def test_ranks_of_a_hand_made_ranking():
    # Texts 0 and 1 describe image 0, text 2 image 1, text 3 image 2.
    similarity_TB = np.array([[0.9, 0.1, 0.1], [0.3, 0.8, 0.4], [0.5, 0.7, 0.6], [0.1, 0.9, 0.2]])
    text_rank_T, image_rank_B = ranks(similarity_TB, np.array([0, 0, 1, 2]))
    assert text_rank_T.tolist() == [0, 2, 0, 1]
    # Image 0 ranks text 0 first; image 1 ranks texts 3 and 1 before its own; image 2 texts 2 and 1.
    assert image_rank_B.tolist() == [0, 2, 2]


def test_a_tie_counts_against():
    same_TB = np.ones((4, 3))
    text_rank_T, image_rank_B = ranks(same_TB, np.array([0, 0, 1, 2]))
    assert text_rank_T.tolist() == [2, 2, 2, 2]
    assert image_rank_B.tolist() == [2, 3, 3]  # two texts of image 0 do not compete
