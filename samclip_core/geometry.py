"""The mapping between an original picture and the square frame that the model sees.

Original frame: H×W pixels, (x, y) with (0, 0) the top-left corner. Model frame: the picture scaled
so that its longest side is ``size`` (rounded as SAM's ResizeLongestSide rounds), in the top-left
corner of a ``size``×``size`` square; the rest is padding. A ``squash``ed picture fills the square
instead, whatever its aspect.
"""

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

PREPROCESS_VERSION = "1"
"""Part of every cache key: increment it when the same file would give other pixels."""

FloatArray = NDArray[np.floating]


@dataclass(frozen=True)
class Crop:
    """A part of a picture: its top-left corner, its size, and the picture's, all in pixels."""

    x: int
    y: int
    height: int
    width: int
    picture_height: int
    picture_width: int

    def of(self, image_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the pixels of the crop."""
        return image_HW3[self.y : self.y + self.height, self.x : self.x + self.width]


@dataclass(frozen=True)
class Geometry:
    """An original picture of ``height``×``width`` pixels in a ``size``×``size`` model frame."""

    height: int
    width: int
    size: int
    squash: bool = False

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.size) < 1:
            raise ValueError(f"sides must be at least 1, got {self}")

    @property
    def input_height(self) -> int:
        """Rows of the model frame that hold the picture, at least 1."""
        return self._scaled(self.height)

    @property
    def input_width(self) -> int:
        """Columns of the model frame that hold the picture, at least 1."""
        return self._scaled(self.width)

    def _scaled(self, side: int) -> int:
        if self.squash:
            return self.size
        return max(1, int(side * (self.size / max(self.height, self.width)) + 0.5))

    @property
    def model_frame(self) -> "Geometry":
        """The geometry of the same picture, resized to the model's resolution."""
        return replace(self, height=self.input_height, width=self.input_width)

    def of(self, crop: Crop) -> "Geometry":
        """Return a crop of the picture in a frame of its own."""
        return replace(self, height=crop.height, width=crop.width)

    def points_to_model(self, points_N2: ArrayLike) -> NDArray[np.float32]:
        """Scale (x, y) from original to model pixels; the prompt encoder adds the half pixel."""
        scale_xy = self.input_width / self.width, self.input_height / self.height
        points = np.asarray(points_N2, np.float64).reshape(-1, 2)
        return (points * scale_xy).astype(np.float32)

    def boxes_to_model(self, boxes_N4: ArrayLike) -> NDArray[np.float32]:
        """Scale (x_min, y_min, x_max, y_max) from original to model pixels."""
        return self.points_to_model(boxes_N4).reshape(-1, 4)

    def grid(self, h: int) -> tuple[int, int]:
        """Return the rows and columns of an h×h grid over the padded frame that hold picture.

        Partly filled cells count.
        """
        rows = math.ceil(self.input_height * h / self.size)
        columns = math.ceil(self.input_width * h / self.size)
        return rows, columns

    def resize(self, image_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize RGB uint8 H×W×3 to the model frame, 3×size×size: bilinear, padded with zeros."""
        pixels_3SS = np.zeros((3, self.size, self.size), np.uint8)
        fitted_hw3 = self.fit(image_HW3)
        pixels_3SS[:, : self.input_height, : self.input_width] = fitted_hw3.transpose(2, 0, 1)
        return pixels_3SS

    def fit(self, image_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize RGB uint8 H×W×3 to ``input_height``×``input_width``×3, bilinear."""
        if image_HW3.shape != (self.height, self.width, 3):
            raise ValueError(
                f"image has shape {image_HW3.shape}, expected ({self.height}, {self.width}, 3)"
            )
        size_wh = (self.input_width, self.input_height)
        return np.asarray(Image.fromarray(image_HW3).resize(size_wh, Image.Resampling.BILINEAR))

    def logits_to_original(self, logits_hw: FloatArray) -> NDArray[np.float32]:
        """Resize one square map over the padded model frame to float32 H×W over the original.

        Follows SAM's post-processing in two bilinear steps: to the model frame, then, without the
        padding, to the original size. Of squashed pictures, it is the second alone.
        """
        valid_hw = self.logits_to_frame(logits_hw)
        size_wh = (self.width, self.height)
        return np.asarray(cv2.resize(valid_hw, size_wh, interpolation=cv2.INTER_LINEAR), np.float32)

    def logits_to_frame(self, logits_hw: FloatArray) -> NDArray[np.float32]:
        """Resize one square map over the padded model frame to the pixels that hold picture.

        Float32, ``input_height``×``input_width``, or the cells of the map if these hold nothing
        else: the first step of ``logits_to_original``.
        """
        logits = np.ascontiguousarray(logits_hw, np.float32)
        if self.squash:
            return logits
        frame = cv2.resize(logits, (self.size, self.size), interpolation=cv2.INTER_LINEAR)
        return np.ascontiguousarray(frame[: self.input_height, : self.input_width])

    def masks_to_original(self, logits_Mhw: FloatArray) -> NDArray[np.bool_]:
        """Resize square logits over the padded model frame: bool M×H×W, where they are above 0.

        Only one full-size map of logits is in memory at a time.
        """
        masks_MHW = np.empty((len(logits_Mhw), self.height, self.width), np.bool_)
        for mask_HW, logits_hw in zip(masks_MHW, logits_Mhw, strict=True):
            np.greater(self.logits_to_original(logits_hw), 0, out=mask_HW)
        return masks_MHW
