import numpy as np
import pytest

from samclip_core.types import ImageFeatures, MaskSet, Prompt
from training.evaluation import clicks


def square(x: int, y: int, side: int) -> np.ndarray:
    mask_HW = np.zeros((40, 60), bool)
    mask_HW[y : y + side, x : x + side] = True
    return mask_HW


def free() -> np.ndarray:
    return np.ones((40, 60), bool)


def test_the_first_click_is_the_centre():
    assert clicks.next_click(np.zeros((40, 60), bool), square(10, 5, 11), free()) == (15, 10, False)


def test_later_clicks_are_in_the_largest_error():
    truth_HW = square(0, 0, 20)
    surplus_HW = truth_HW | square(40, 10, 21)
    x, y, negative = clicks.next_click(surplus_HW, truth_HW, free())
    assert (abs(x - 50) <= 1, abs(y - 20) <= 1, negative) == (True, True, True)
    missing_HW = truth_HW & ~square(3, 3, 9)
    assert clicks.next_click(missing_HW, truth_HW, free()) == (7, 7, False)


def test_no_pixel_is_clicked_twice():
    free_HW = free()
    free_HW[10, 15] = False
    x, y, _ = clicks.next_click(np.zeros((40, 60), bool), square(10, 5, 11), free_HW)
    assert (x, y) != (15, 10)


def test_clicks_needed():
    assert clicks.needed([0.2, 0.86, 0.4, 0.91], 0.85) == 2
    assert clicks.needed([0.2, 0.86, 0.4, 0.91], 0.9) == 4
    assert clicks.needed([0.2, 0.86], 0.95) == clicks.CLICKS


def test_the_same_objects_are_drawn_each_time():
    truths = [square(x, 0, 5) for x in range(9)]
    first = clicks.drawn(truths)
    assert len(first) == clicks.OBJECTS
    assert all(a is b for a, b in zip(first, clicks.drawn(truths), strict=True))


class Slow:
    """A model that knows the object and shows one more row of it with each click."""

    def __init__(self, truth_HW: np.ndarray) -> None:
        self.truth_HW, self.prompts = truth_HW, list[Prompt]()

    def segment(
        self, features: ImageFeatures, prompts: list[Prompt], multimask: bool
    ) -> list[MaskSet]:
        self.prompts += prompts
        number = len(self.prompts)
        mask_HW = self.truth_HW.copy()
        mask_HW[number:] = False
        logits_1hw = np.full((1, 4, 4), number, np.float32)
        return [MaskSet(mask_HW[None], np.ones(1), np.ones(1), logits_1hw)]


def test_clicks_go_on_until_the_mask_is_right():
    model = Slow(square(0, 0, 10))
    overlaps = clicks.clicked(model, None, model.truth_HW)
    assert overlaps == pytest.approx([n / 10 for n in range(1, 10)])
    first, second = model.prompts[:2]
    assert (first.points, first.negative, first.mask_input_hw) == (((4.5, 4.5),), (False,), None)
    assert (second.points[0], len(second.points)) == (first.points[0], 2)
    assert second.mask_input_hw.max() == 1, "each answer starts from the logits of the last one"
    endless = Slow(square(0, 0, 30))
    assert len(clicks.clicked(endless, None, endless.truth_HW)) == clicks.CLICKS
