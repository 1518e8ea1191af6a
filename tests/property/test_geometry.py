"""Invariants of Geometry for every size, from one pixel to a large panorama."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from samclip_core.geometry import Geometry

geometries = st.builds(
    Geometry,
    height=st.integers(1, 6000),
    width=st.integers(1, 8000),
    size=st.sampled_from([64, 384, 1024]),
)
fractions = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8)


@given(geometry=geometries, fractions_N2=fractions)
def test_points_and_boxes_stay_in_place(geometry: Geometry, fractions_N2: list) -> None:
    size_2 = np.array([geometry.width, geometry.height])
    points_N2 = np.array(fractions_N2) * size_2
    model_N2 = geometry.points_to_model(points_N2)
    assert (model_N2 <= [geometry.input_width + 1e-3, geometry.input_height + 1e-3]).all()
    back_N2 = model_N2 / [geometry.input_width, geometry.input_height] * size_2
    assert np.abs(back_N2 - points_N2).max() < 0.5
    boxes_N4 = np.concatenate([points_N2 / 2, points_N2], axis=1)
    np.testing.assert_allclose(geometry.boxes_to_model(boxes_N4)[:, 2:], model_N2, rtol=1e-6)


@given(geometry=geometries, h=st.sampled_from([12, 24, 48, 64]))
def test_grid_covers_the_picture_and_no_whole_cell_more(geometry: Geometry, h: int) -> None:
    cell = geometry.size / h
    for cells, side in zip(
        geometry.grid(h), (geometry.input_height, geometry.input_width), strict=True
    ):
        assert 1 <= cells <= h
        assert (cells - 1) * cell < side <= cells * cell
