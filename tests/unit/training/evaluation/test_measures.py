import numpy as np
import pytest

from training.evaluation.measures import (
    centre,
    class_iou,
    class_pixels,
    iou,
    mean_iou,
    miou_interval,
    ranks,
    ratio_figures,
    semantic_figures,
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


def test_a_share_of_nothing_is_no_figure():
    assert ratio_figures("large", np.zeros(3), np.zeros(3)) == {}
    one = ratio_figures("large", np.array([1, 0, 0]), np.array([2, 0, 0]))  # others in a third
    assert one == {"large": 0.5, "large_low": 0.5, "large_high": 0.5}


def test_the_centre_is_the_middle_of_the_innermost_pixel():
    mask_HW = np.zeros((9, 12), np.bool_)
    mask_HW[1:6, 2:7] = True  # its centre is pixel (4, 3)
    mask_HW[8, 10] = True
    assert centre(mask_HW) == (4.5, 3.5)
    assert centre(np.ones((5, 5), np.bool_)) == (2.5, 2.5)
    assert centre(np.ones((1, 1), np.bool_)) == (0.5, 0.5)


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


def photographs(count: int, seed: int = 0) -> list[np.ndarray]:
    """Return pixel counts of four classes, the third only predicted, the fourth never seen."""
    random = np.random.default_rng(seed)
    counts = []
    for right_2 in random.integers(20, 80, (count, 2)):
        right = [*right_2, 0, 0]
        counts.append(np.array([right, [100, 100, 0, 0], [*right_2, *(200 - right_2.sum(), 0)]]))
    return counts


def test_both_rules_the_numbers_and_the_miou_interval():
    counts = photographs(40)
    figures = semantic_figures("set", counts)
    right_2 = np.sum(counts, axis=0)[0, :2]
    both = right_2 / 4000  # the union is the truth: what is wrong is predicted as the third class
    assert figures["set_miou"] == pytest.approx(both.mean())
    assert figures["set_miou_union"] == pytest.approx(both.sum() / 3)
    assert figures["set_miou_low"] < figures["set_miou"] < figures["set_miou_high"]
    numbers = [figures[f"set_{name}"] for name in ("classes", "classes_union", "photographs")]
    assert numbers == [2, 3, 40]
    assert all(isinstance(number, int) for number in numbers)


def test_the_interval_is_that_of_the_mean_over_photographs():
    """With one class the IoU is a mean, whose standard error is known."""
    counts = np.stack(photographs(200))[:, :, :1]
    counts[:, 2] = counts[:, 0]  # nothing else is predicted as this class
    low, high = miou_interval(counts)
    share_N = counts[:, 0, 0] / 100
    error = share_N.std(ddof=1) / np.sqrt(len(share_N))
    assert low == pytest.approx(share_N.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(share_N.mean() + 1.96 * error, abs=0.3 * error)
    assert miou_interval(counts) == (low, high)


def test_photographs_without_labelled_pixels_do_not_count():
    counts = photographs(2)
    empty = [np.zeros_like(counts[0])] * 2
    low, high = miou_interval(np.stack(counts + empty))
    assert np.isfinite([low, high]).all()
    with pytest.raises(ValueError, match="set: no labelled pixels in 2 photographs"):
        semantic_figures("set", empty)
    with pytest.raises(ValueError, match="in 0 photographs"):
        semantic_figures("set", [])
