"""The points that a search asks."""

import numpy as np
import pytest

from samclip_core.answers.points import (
    MOST,
    PointGrid,
    grid_points,
)
from samclip_core.geometry import Geometry
from samclip_core.types import ImageFeatures
from tests.tiny import CALIBRATION

SQUARE = Geometry(128, 128, 128)


def features(sam_Dhw: np.ndarray) -> ImageFeatures:
    return ImageFeatures(SQUARE, sam_Dhw.astype(np.float16))


def varied() -> ImageFeatures:
    return features(np.random.default_rng(0).normal(size=(8, 16, 16)))


def test_the_grid_divides_the_picture_evenly() -> None:
    np.testing.assert_allclose(
        grid_points(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    )


@pytest.mark.parametrize("side", [1, 2, 3, 5, 8, 16])
def test_no_point_is_asked_twice_and_some_are_never_asked(side: int) -> None:
    grid = PointGrid(varied(), side, CALIBRATION.search)
    asked = grid.first().tolist()
    assert asked
    while len(following := grid.following([], 7)):
        assert len(following) <= 7
        asked += following.tolist()
    assert len(set(asked)) == len(asked) <= max(len(grid_points(1)), MOST * side**2)


def test_the_most_different_place_comes_first() -> None:
    sam_Dhw = np.zeros((2, 16, 16))
    sam_Dhw[0] = 1
    sam_Dhw[:, 5, 4] = 0, 1
    grid = PointGrid(features(sam_Dhw), 16, CALIBRATION.search)
    grid.first()
    far = grid.following([], 200).tolist()
    assert 5 * 16 + 4 in far
    assert not grid.following([], 1).size


def test_a_mask_parts_the_points_inside_and_outside() -> None:
    sam_Dhw = np.ones((2, 16, 16))
    sam_Dhw[1, 5, 4] = 0.3  # a distance of 0.12 to the others
    mask_hw = np.zeros((32, 32), bool)
    mask_hw[10:12, 8:10] = True  # the same cell
    asked = []
    for masks in ([], [mask_hw]):
        grid = PointGrid(features(sam_Dhw), 16, CALIBRATION.search)
        grid.first()
        asked.append(5 * 16 + 4 in grid.following(masks, 256))
    assert asked == [False, True]
