"""A rough mask from any source as a prompt: what the mask decoder gets for it.

H W pixels of the original picture, s side of the SAM head's low-resolution logits.
"""

from dataclasses import dataclass, field, replace
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.areas import check_mask
from samclip_core.errors import InvalidPrompt
from samclip_core.geometry import Geometry
from samclip_core.io.masks import Runs, decode_pixels, find_runs
from samclip_core.types import Prompt

STRENGTH = 6.0
"""Logit inside the mask, and its negative outside."""
FRINGE = 0.08
"""Standard deviation of the blur of the mask's edge, as a share of the root of its area."""


@dataclass(frozen=True, eq=False)
class RoughMask:
    """One object that a mask of the picture's size marks roughly, as another tool or a pen does.

    ``beside`` has the points and the box that the prompt has as well. Without a box, that of the
    mask is one.
    """

    mask: Runs
    beside: Prompt = field(default_factory=Prompt)

    @classmethod
    def of(cls, mask_HW: NDArray[np.bool_], beside: Prompt | None = None) -> Self:
        """Return the prompt of a mask."""
        return cls(find_runs(mask_HW), beside or Prompt())

    def validate(self, geometry: Geometry) -> None:
        """Raise an InvalidRequest unless the prompt fits a picture of that size.

        A mask of every pixel, or without one in the box, marks nothing.
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
        replace(self.beside, box=self._box).validate(geometry)
        x_min, y_min, x_max, y_max = self._box
        left, top, right, bottom = self.mask.box
        if left >= x_max or right <= x_min or top >= y_max or bottom <= y_min:
            raise InvalidPrompt(
                f"the mask, of the box {self.mask.box}, lies outside the box of the prompt: give a "
                "box around the object that the mask marks, or none"
            )

    def to_prompt(self, geometry: Geometry, side: int) -> Prompt:
        """Return what the mask decoder gets; ``side`` is that of its logits.

        The prompt has passed ``validate``.
        """
        return replace(
            self.beside, box=self._box, mask_input_hw=logits_of(self.mask, geometry, side)
        )

    @property
    def _box(self) -> tuple[float, float, float, float]:
        return self.beside.box or self.mask.box


def logits_of(mask: Runs, geometry: Geometry, side: int) -> NDArray[np.float32]:
    """Return a mask of the picture's size as logits over the padded model frame, s×s."""
    frame = geometry.size
    size_hw = geometry.input_height, geometry.input_width  # the mask is transposed, as its runs are
    shrinks = max(mask.height, mask.width) > frame
    way = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    covered_wh = cv2.resize(decode_pixels(mask), size_hw, interpolation=way)
    frame_SS = np.zeros((frame, frame), np.float32)
    frame_SS[: size_hw[0], : size_hw[1]] = covered_wh.T
    covered_ss = cv2.resize(frame_SS, (side, side), interpolation=cv2.INTER_AREA) / 255
    rows, columns = geometry.grid(side)
    spread = FRINGE * float(np.sqrt(covered_ss.sum()))
    covered_ss[:rows, :columns] = cv2.GaussianBlur(
        covered_ss[:rows, :columns], (0, 0), max(spread, 0.3), borderType=cv2.BORDER_REPLICATE
    )
    return (STRENGTH * (2 * covered_ss - 1)).astype(np.float32)
