"""Masks of other programs and of damaged messages."""

import cv2
import numpy as np
import pytest
from samclip import mask_codecs


def test_pixels_that_touch_at_a_corner_are_separate_parts() -> None:
    assert len(mask_codecs.encode_polygons(np.eye(3, dtype=bool))) == 3


@pytest.mark.parametrize("size", [(0, 0), (0, 4), (3, 5)])
def test_an_empty_mask_has_no_polygons(size: tuple[int, int]) -> None:
    assert mask_codecs.encode_polygons(np.zeros(size, bool)) == []


def test_polygons_of_others_are_filled_by_pixel_centres() -> None:
    triangle = np.array([1.2, 0.7, 27.9, 6.1, 9.4, 29.3], np.float32)
    mask_HW = mask_codecs.decode_polygons([triangle], 30, 30)
    points = triangle.reshape(-1, 1, 2)
    for y, x in np.ndindex(30, 30):
        inside = cv2.pointPolygonTest(points, (x + 0.5, y + 0.5), measureDist=False) >= 0
        assert mask_HW[y, x] == inside


def test_polygons_that_leave_the_picture_are_clipped() -> None:
    square = np.array([-5, -5, 50, -5, 50, 50, -5, 50], np.float32)
    assert mask_codecs.decode_polygons([square], 7, 9).all()
    assert not mask_codecs.decode_polygons([], 7, 9).any()


@pytest.mark.parametrize("ring", [[0, 0, 1], [0, 0, np.nan, 1], [0, 0, np.inf, 1]])
def test_rings_that_are_none_are_refused(ring: list[float]) -> None:
    with pytest.raises(ValueError, match="odd number of coordinates or one that is not finite"):
        mask_codecs.decode_polygons([np.array(ring, np.float32)], 4, 4)
