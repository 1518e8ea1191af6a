"""A rough mask from any source as a prompt: what the mask decoder gets for it.

STRENGTH, FRINGE and MARGIN, and whether a box and a point help, were chosen for ``edge`` on
photographs that it was not trained on, with outlines that were made larger, smaller, moved and cut
to six corners.

H W pixels of the original picture, s side of the SAM head's low-resolution logits.
"""

from dataclasses import dataclass, field, replace
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.areas import check_mask
from samclip_core.errors import InvalidPrompt
from samclip_core.geometry import FloatArray, Geometry
from samclip_core.io.masks import Runs, decode_pixels, find_runs
from samclip_core.types import Box, Prompt

STRENGTH = 10.0
"""Logit inside the mask, and its negative outside."""
FRINGE = 0.08
"""Standard deviation of the blur of the mask's edge, as a share of the root of its area."""
MARGIN = 0.1
"""What the box has more than the mask on each side, as a share of its width or height."""


@dataclass(frozen=True, eq=False)
class RoughMask:
    """One object that a mask of the picture's size marks roughly, as another tool or a pen does.

    ``beside`` has the points and the box that the prompt has as well. Without a box, that of the
    mask is one, and without points, the mask's middle.
    """

    mask: Runs
    beside: Prompt = field(default_factory=Prompt)

    @classmethod
    def of(cls, mask_HW: NDArray[np.bool_], beside: Prompt | None = None) -> Self:
        """Return the prompt of a mask."""
        return cls(find_runs(mask_HW), beside or Prompt())

    def validate(self, geometry: Geometry) -> None:
        """Raise an InvalidRequest unless the prompt fits a picture of that size.

        A mask of every pixel, or outside the box, marks nothing.
        """
        check_mask(self.mask, geometry)
        if self.mask.area == geometry.height * geometry.width:
            raise InvalidPrompt(
                "the mask covers the whole image, which marks no object: give one that covers the "
                "object alone"
            )
        if self.beside.mask_input_hw is not None:
            raise InvalidPrompt(
                "a mask and a mask_input exclude each other: give the mask of another tool as "
                "mask, the logits of an earlier answer as mask_input"
            )
        x_min, y_min, x_max, y_max = box = self.beside.box or self.mask.box
        replace(self.beside, box=box).validate(geometry)
        left, top, right, bottom = self.mask.box
        if left >= x_max or right <= x_min or top >= y_max or bottom <= y_min:
            raise InvalidPrompt(
                f"the mask, of the box {self.mask.box}, lies outside the box of the prompt: give a "
                "box around the object that the mask marks, or none"
            )

    def to_prompt(self, geometry: Geometry, side: int) -> Prompt:
        """Return the prompt for the mask decoder, whose logits have ``side``×``side`` cells.

        The prompt has passed ``validate``. Takes time for each pixel of the picture.
        """
        covered_ss = _coverage(self.mask, geometry, side)
        return replace(
            self.beside,
            points=self.beside.points or (_within(self.mask.box, _middle(covered_ss, geometry)),),
            box=self.beside.box or _around(self.mask.box, geometry),
            mask_input_hw=_logits(covered_ss, geometry),
        )


def _coverage(mask: Runs, geometry: Geometry, side: int) -> NDArray[np.float32]:
    """Return the share of each cell of the padded model frame that a mask covers, s×s."""
    frame, size_hw = geometry.size, (geometry.input_height, geometry.input_width)
    way = cv2.INTER_AREA if max(mask.height, mask.width) > frame else cv2.INTER_LINEAR
    covered_wh = cv2.resize(decode_pixels(mask) * np.uint8(255), size_hw, interpolation=way)
    covered_SS = np.zeros((frame, frame), np.float32)
    covered_SS[: size_hw[0], : size_hw[1]] = covered_wh.T
    covered_ss = cv2.resize(covered_SS, (side, side), interpolation=cv2.INTER_AREA)
    if covered_ss.max() < 255 / 2:  # smaller than a cell, of which it is the middle one
        x, y = (
            geometry.boxes_to_model([mask.box]).reshape(2, 2).mean(axis=0) * side / frame
        ).tolist()
        covered_ss[int(y), int(x)] = 255
    return np.asarray(covered_ss, np.float32) / np.float32(255)


def _middle(covered_ss: FloatArray, geometry: Geometry) -> tuple[float, float]:
    """Return the point, in pixels of the picture, that is furthest from the edges of a mask."""
    rows, columns = geometry.grid(len(covered_ss))
    inside_hw = covered_ss[:rows, :columns] >= covered_ss.max() / 2
    depth_hw = cv2.distanceTransform(np.pad(inside_hw, 1).astype(np.uint8), cv2.DIST_L2, 5)
    row, column = np.unravel_index(depth_hw[1:-1, 1:-1].argmax(), inside_hw.shape)
    cell = geometry.size / len(covered_ss)
    x = (float(column) + 0.5) * cell / geometry.input_width
    y = (float(row) + 0.5) * cell / geometry.input_height
    return min(x, 1.0) * geometry.width, min(y, 1.0) * geometry.height


def _within(box: Box, point: tuple[float, float]) -> tuple[float, float]:
    """Return the point of a box that is next to one: a mask may be smaller than a cell."""
    x_min, y_min, x_max, y_max = box
    return min(max(point[0], x_min), x_max), min(max(point[1], y_min), y_max)


def _around(box: Box, geometry: Geometry) -> Box:
    """Return a box with its margin, inside the picture."""
    x_min, y_min, x_max, y_max = box
    x, y = MARGIN * (x_max - x_min), MARGIN * (y_max - y_min)
    right, bottom = min(geometry.width, x_max + x), min(geometry.height, y_max + y)
    return (max(0.0, x_min - x), max(0.0, y_min - y), right, bottom)


def _logits(covered_ss: NDArray[np.float32], geometry: Geometry) -> NDArray[np.float32]:
    """Return logits, s×s, with a fringe, from the share of each cell that a mask covers."""
    rows, columns = geometry.grid(len(covered_ss))
    spread = max(0.3, FRINGE * float(np.sqrt(covered_ss.sum())))  # a smaller one changes nothing
    soft_ss = np.zeros_like(covered_ss)
    soft_ss[:rows, :columns] = cv2.GaussianBlur(
        covered_ss[:rows, :columns], (0, 0), spread, borderType=cv2.BORDER_REPLICATE
    )
    return STRENGTH * (2 * soft_ss - 1)
