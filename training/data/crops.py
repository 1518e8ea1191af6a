"""Square crops of photographs, which the student and its teachers see at a size each.

CLIP models are trained on square crops without padding, so a teacher's view is cut from the
photograph at the teacher's own size and not from the student's pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from samclip_core.config import Filter
from samclip_core.io import image
from training.data.frames import resized
from training.data.sample import Sample, reading

SHARES = (0.7, 1.0)
"""Sides of crops, as shares of the photograph's shorter side."""


@dataclass(frozen=True)
class View:
    """The pixels that a network reads of a crop: their side, and the filter that resizes to it."""

    side: int
    filter: Filter = "bilinear"


@dataclass(frozen=True)
class Crop:
    """A square crop in any photograph.

    ``share`` is its side as a share of the photograph's shorter side; ``down`` and ``across`` are
    its position as shares of the room that it leaves.
    """

    share: float
    down: float
    across: float
    flip: bool

    @classmethod
    def draw(cls, random: np.random.Generator) -> Self:
        """Draw a crop; uses four random numbers."""
        share, down, across, flip = random.random(4).tolist()
        return cls(SHARES[0] + (SHARES[1] - SHARES[0]) * share, down, across, flip < 0.5)

    def of(self, image_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Cut the crop out of a photograph of any scale: ``LL3``, not flipped."""
        height, width = image_HW3.shape[:2]
        side = max(1, round(self.share * min(height, width)))
        y, x = round(self.down * (height - side)), round(self.across * (width - side))
        return image_HW3[y : y + side, x : x + side]

    def views(self, sample: Sample, views: Sequence[View]) -> list[NDArray[np.uint8]]:
        """Return the crop of ``sample`` as ``3LL`` for each view, the channels last in memory.

        Raises BadSample if the photograph is broken.
        """
        limits = image.ImageLimits()
        with reading(sample.source, sample.key, "the photograph is broken"):
            size = image.probe(sample.encoded, limits)
            # A JPEG is decoded at a half or less of its size where that is enough for all views.
            scale = max(view.side for view in views) / (self.share * min(size))
            width, height = (math.ceil(side * scale) for side in size)
            image_HW3 = image.decode(sample.encoded, limits, least=(width, height))
        crop_LL3 = np.ascontiguousarray(self.of(image_HW3))
        found = [resized(crop_LL3, (view.side, view.side), view.filter) for view in views]
        if self.flip:
            found = [np.ascontiguousarray(pixels_LL3[:, ::-1]) for pixels_LL3 in found]
        return [pixels_LL3.transpose(2, 0, 1) for pixels_LL3 in found]


def stacked_views(views: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Return ``B3LL`` of views ``3LL``, the channels last in memory as theirs are."""
    pixels_BLL3 = np.stack([pixels_3LL.transpose(1, 2, 0) for pixels_3LL in views])
    return pixels_BLL3.transpose(0, 3, 1, 2)
