import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask

from tests.photographs import rle
from training.data.strips import Rectangles, Strips, coverage, strips

MASKS = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=40))


def drawn(found: Strips, shape: tuple[int, ...]) -> np.ndarray:
    mask_HW = np.zeros(shape, int)
    for column, top, bottom in zip(*found, strict=True):
        mask_HW[top:bottom, column] += 1
    return mask_HW


@given(MASKS)
@settings(max_examples=200, deadline=None)
def test_runs_draw_the_mask(mask_HW: np.ndarray):
    assert np.array_equal(drawn(strips(rle(mask_HW)), mask_HW.shape), mask_HW)


def test_runs_of_a_large_mask_have_long_numbers_and_differences():
    y, x = np.mgrid[:700, :900]
    mask_HW = (y - 350) ** 2 + (x - 400) ** 2 < 340**2
    mask_HW[:, 850:] = True  # one run over many columns
    found = strips(rle(mask_HW))
    assert np.array_equal(drawn(found, mask_HW.shape), mask_HW)
    as_bytes = coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    assert all(map(np.array_equal, strips(as_bytes), found))


def test_coverage_is_the_exact_area():
    random = np.random.default_rng(0)
    left_R, top_R = np.arange(6.0) * 1.5, random.uniform(0, 3, 6)
    rectangles = Rectangles(left_R, top_R, left_R + random.uniform(0.1, 1.5, 6), top_R + 4.4)
    share_mm = coverage(rectangles, 10)
    for y, x in np.ndindex(10, 10):
        across = np.minimum(rectangles.right_R, x + 1) - np.maximum(rectangles.left_R, x)
        down = np.minimum(rectangles.bottom_R, y + 1) - np.maximum(rectangles.top_R, y)
        assert share_mm[y, x] == pytest.approx((across.clip(0) * down.clip(0)).sum(), abs=1e-6)


def test_nothing_covers_nothing():
    nothing = Rectangles(*np.zeros((4, 0)))
    assert coverage(nothing, 3).tolist() == [[0.0] * 3] * 3
    assert nothing.box() == (0, 0, 0, 0)
