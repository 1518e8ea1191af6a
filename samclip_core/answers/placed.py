"""Points and a box that say where the objects of a prompt are. s×s cells of a mask."""

import numpy as np
from numpy.typing import NDArray

from samclip_core.geometry import Geometry
from samclip_core.types import Prompt

IN_BOX = 0.8
"""A mask is in a box if this much of it is."""


def in_box(where: Prompt | None, geometry: Geometry, side: int) -> NDArray[np.bool_]:
    """Return the cells whose centre is in the box; all if there is none.

    The centre of a cell that ends in the padding may lie there: then the picture's edge counts.
    """
    if where is None or where.box is None:
        return np.ones((side, side), np.bool_)
    x_min, y_min, x_max, y_max = where.box
    centre_s = (np.arange(side) + 0.5) * (geometry.size / side)
    x_s = np.minimum(centre_s, geometry.input_width)
    y_s1 = np.minimum(centre_s, geometry.input_height)[:, None]
    return (x_s >= x_min) & (x_s <= x_max) & (y_s1 >= y_min) & (y_s1 <= y_max)


def fits(where: Prompt | None, inside_ss: NDArray[np.bool_], geometry: Geometry) -> bool:
    """Return whether a mask contains the positive points only, and is in the box."""
    if where is None:
        return True
    side = len(inside_ss)
    rows, columns = geometry.grid(side)
    inside_hw = inside_ss[:rows, :columns]
    in_box_hw = in_box(where, geometry, side)[:rows, :columns]
    if (inside_hw & in_box_hw).sum() < IN_BOX * inside_hw.sum():
        return False
    negative = where.negative or (False,) * len(where.points)
    for (x, y), unwanted in zip(where.points, negative, strict=True):
        row, column = (int(value * side / geometry.size) for value in (y, x))
        if inside_hw[min(row, rows - 1), min(column, columns - 1)] == unwanted:
            return False
    return True
