"""Boxes and masks are embedded by the cells of the CLIP map that they cover."""

import numpy as np
import pytest

from samclip_core.answers.areas import Area, combine, embed_areas
from samclip_core.errors import InvalidPrompt, InvalidRequest
from samclip_core.geometry import Geometry
from samclip_core.types import ImageFeatures
from tests.fakes import features_of

WIDE = Geometry(60, 120, 128)  # enlarged; the lower half of the frame is padding
CELL = 7.5  # pixels of the picture per cell of a 16×16 grid


def quarters() -> ImageFeatures:
    """Return features with class 0 to 3 from left to right, and class 4 in the padding."""
    classes_hw = np.full((16, 16), 4)
    classes_hw[:8] = np.arange(16) // 4
    return features_of(WIDE, classes_hw, 5)


def rectangle(x_min: int, y_min: int, x_max: int, y_max: int) -> Area:
    mask_HW = np.zeros((60, 120), np.bool_)
    mask_HW[y_min:y_max, x_min:x_max] = True
    return Area.of_mask(mask_HW)


def embed(area: Area) -> np.ndarray:
    (area_D,) = embed_areas(quarters(), [area])
    return area_D


def test_a_box_counts_each_cell_by_its_part_in_the_box() -> None:
    # 3 cells of class 0, and half a cell of class 1.
    box = (CELL, 0, 4.5 * CELL, 20)
    np.testing.assert_allclose(embed(Area(box=box)), np.array([6, 1, 0, 0, 0]) / 37**0.5, atol=1e-6)


def test_a_mask_counts_each_cell_by_its_pixels() -> None:
    mask_HW = np.zeros((60, 120), np.bool_)
    mask_HW[10:12, 40] = mask_HW[50, 70] = True
    expected = np.array([0, 2, 1, 0, 0]) / 5**0.5
    np.testing.assert_allclose(embed(Area.of_mask(mask_HW)), expected, atol=1e-6)


@pytest.mark.parametrize("area", [Area(box=(0, 0, 120, 60)), rectangle(0, 0, 120, 60)])
def test_the_whole_picture_is_the_mean_of_all_cells_that_hold_it(area: Area) -> None:
    np.testing.assert_allclose(embed(area), [0.5, 0.5, 0.5, 0.5, 0], atol=1e-6)


def test_the_smallest_parts_have_an_embedding() -> None:
    pixel = rectangle(119, 59, 120, 60)
    point = Area(box=(119.9999, 59.9999, 120, 60))
    for area in (pixel, point):
        np.testing.assert_allclose(embed(area), [0, 0, 0, 1, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("area", "error", "message"),
    [
        (Area(), InvalidRequest, "either a box or a mask"),
        (Area(box=(0, 0, 1, 1), mask=rectangle(0, 0, 1, 1).mask), InvalidRequest, "either"),
        (Area(box=(0, 0, 121, 60)), InvalidPrompt, "beyond the image of 120×60"),
        (Area(box=(5, 5, 5, 9)), InvalidPrompt, "inverted or empty"),
        (Area(box=(0, 0, float("nan"), 9)), InvalidPrompt, "not finite"),
        (rectangle(5, 5, 5, 5), InvalidRequest, "the mask is empty"),
        (Area.of_mask(np.ones((120, 60), bool)), InvalidRequest, "60×120 pixels, the image 120×60"),
    ],
)
def test_areas_that_are_none_are_refused_by_number(
    area: Area, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"area 1: .*{message}"):
        list(embed_areas(quarters(), [Area(box=(0, 0, 9, 9)), area]))


def test_a_combined_query_is_nearest_to_what_resembles_both() -> None:
    image_D, text_D = np.eye(3, dtype=np.float32)[:2]
    query_D = combine(image_D, text_D, 1.5)
    assert np.linalg.norm(query_D) == pytest.approx(1)
    assert query_D[1] / query_D[0] == pytest.approx(1.5)
    both_D = np.array([1, 1, 0]) / 2**0.5
    assert query_D @ both_D > max(query_D @ image_D, query_D @ text_D)
