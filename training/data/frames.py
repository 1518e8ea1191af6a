"""Cut square training frames, with the masks in them, out of photographs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from samclip_core.config import Filter
from samclip_core.io import image
from training.data.sample import Sample, reading
from training.data.strips import Rectangles, coverage, strips


@dataclass(frozen=True)
class Frame:
    """A square cut of a photograph in the model frame, with the masks to predict.

    ``pixels_3SS``: uint8 RGB, the channels last in memory. ``masks_Pmm``: float, the share of each
    cell that the mask covers.
    ``boxes_P4``: float, tight boxes x0, y0, x1, y1 in frame pixels, computed from the outlines
    because a small object may fill a single cell. ``valid``: the (height, width) that the
    photograph covers.
    """

    pixels_3SS: NDArray[np.uint8]
    masks_Pmm: NDArray[np.float32]
    boxes_P4: NDArray[np.float32]
    valid: tuple[int, int]

    def first(self, count: int) -> "Frame":
        """Return the same cut with its first ``count`` masks."""
        return replace(self, masks_Pmm=self.masks_Pmm[:count], boxes_P4=self.boxes_P4[:count])


def stacked(frames: Sequence[Frame]) -> tuple[Tensor, Tensor]:
    """Return uint8 ``pixels_B3SS``, the channels last in memory, and int valid ``sizes_B2``."""
    pixels_BSS3 = np.stack([frame.pixels_3SS.transpose(1, 2, 0) for frame in frames])
    sizes_B2 = torch.tensor([frame.valid for frame in frames])
    return torch.from_numpy(pixels_BSS3).permute(0, 3, 1, 2), sizes_B2


@dataclass(frozen=True)
class Window:
    """The position of a square cut in a photograph of ``shape`` (height, width).

    ``scaled`` is the photograph's (height, width) in frame pixels, ``corner`` the (y, x) of the
    window in it, ``valid`` the (height, width) of the window that the photograph covers.
    """

    size: int
    shape: tuple[int, int]
    scaled: tuple[int, int]
    corner: tuple[int, int]
    flip: bool

    @classmethod
    def draw(
        cls,
        shape: tuple[int, int],
        size: int,
        scales: tuple[float, float],
        random: np.random.Generator,
    ) -> "Window":
        scale = size * random.uniform(*scales) / max(shape)
        scaled_h, scaled_w = (max(1, round(side * scale)) for side in shape)
        y, x = (int(random.integers(max(side - size, 0) + 1)) for side in (scaled_h, scaled_w))
        return cls(size, shape, (scaled_h, scaled_w), (y, x), bool(random.random() < 0.5))

    @property
    def valid(self) -> tuple[int, int]:
        return min(self.scaled[0], self.size), min(self.scaled[1], self.size)

    def pixels(self, image_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize the photograph to the drawn scale, cut the window, flip and pad: ``SS3``."""
        (y, x), (height, width) = self.corner, self.valid
        cut_hw3 = resized(image_HW3, self.scaled)[y : y + height, x : x + width]
        cut_hw3 = cv2.flip(cut_hw3, 1) if self.flip else cut_hw3
        below, right = self.size - height, self.size - width
        padded = cv2.copyMakeBorder(cut_hw3, 0, below, 0, right, cv2.BORDER_CONSTANT)
        return np.asarray(padded, np.uint8)

    def labels(
        self, labels_HW: NDArray[np.integer], cells: int, outside: int
    ) -> NDArray[np.integer]:
        """Return the label in the centre of each cell of the window, ``outside`` in the padding."""
        (down, across), (y, x) = np.divide(self.scaled, self.shape), self.corner
        height, width = self.valid
        row_m = column_m = (np.arange(cells) + 0.5) * self.size / cells
        inside_mm = np.logical_and.outer(row_m < height, column_m < width)
        if self.flip:
            column_m = width - column_m
        row_m, column_m = ((row_m + y) / down).astype(int), ((column_m + x) / across).astype(int)
        seen_mm = labels_HW.take(row_m, 0, mode="clip").take(column_m, 1, mode="clip")
        return np.where(inside_mm, seen_mm, outside)

    def visible(self, rle: dict[str, Any]) -> Rectangles:
        """Return the part of a mask inside the window as rectangles in frame pixels."""
        column_R, top_R, bottom_R = strips(rle)
        (down, across), (y, x) = np.divide(self.scaled, self.shape), self.corner
        height, width = self.valid
        top_R, bottom_R = ((rows_R * down - y).clip(0, height) for rows_R in (top_R, bottom_R))
        left_R, right_R = (
            (columns_R * across - x).clip(0, width) for columns_R in (column_R, column_R + 1)
        )
        if self.flip:
            left_R, right_R = width - right_R, width - left_R
        seen_R = (bottom_R > top_R) & (right_R > left_R)
        return Rectangles(*(ends_R[seen_R] for ends_R in (left_R, top_R, right_R, bottom_R)))


def resized(
    image_HW3: NDArray[np.uint8],
    shape: tuple[int, int],
    filter: Filter = "bilinear",
) -> NDArray[np.uint8]:
    """Resize to ``shape`` with an antialiased filter of Pillow; serving uses the bilinear one."""
    height, width = shape
    enlarges = height >= image_HW3.shape[0] and width >= image_HW3.shape[1]
    if enlarges and filter == "bilinear":
        enlarged = cv2.resize(image_HW3, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(enlarged, np.uint8)
    # Pillow's filter as torch implements it for uint8: a third of Pillow's time.
    image_13HW = torch.from_numpy(image_HW3)[None].permute(0, 3, 1, 2)  # seen as channels last
    shrunk_13hw = F.interpolate(image_13HW, shape, mode=filter, antialias=True)
    return np.asarray(shrunk_13hw.permute(0, 2, 3, 1)[0].numpy(), np.uint8)


def cut(
    sample: Sample,
    rles: Sequence[dict[str, Any]],
    size: int,
    mask_size: int,
    random: np.random.Generator,
    scales: tuple[float, float] = (0.7, 1.7),
    every: bool = False,
) -> Frame:
    """Return a cut of ``sample`` at a random scale, position and flip, with the visible ``rles``.

    The longer side is scaled to ``scales`` times ``size``, then a ``size``×``size`` window is cut
    out. With ``every``, all of ``rles`` are kept, even those that are not visible.
    Raises BadSample if the photograph or a mask is broken.
    """
    limits = image.ImageLimits()
    with reading(sample.source, sample.key, "the photograph is broken"):
        width, height = image.probe(sample.encoded, limits)
        window = Window.draw((height, width), size, scales, random)
        image_HW3 = image.decode(sample.encoded, limits, least=window.scaled[::-1])
    cells = window.valid[0] * window.valid[1] * (mask_size / size) ** 2
    masks, boxes = [], []
    for rle in rles:
        with reading(sample.source, sample.key, "a mask is broken"):
            if list(rle["size"]) != [height, width]:
                raise ValueError(
                    f"its size is {rle['size']}, expected the photograph's {[height, width]}"
                )
            seen = window.visible(rle)
        mask_mm = coverage(Rectangles(*(ends_R * (mask_size / size) for ends_R in seen)), mask_size)
        if every or 5 < np.count_nonzero(mask_mm > 0.5) < 0.9 * cells:
            masks.append(mask_mm)
            boxes.append(seen.box())
    return Frame(
        window.pixels(image_HW3).transpose(2, 0, 1),
        np.array(masks, np.float32).reshape(-1, mask_size, mask_size),
        np.array(boxes, np.float32).reshape(-1, 4),
        window.valid,
    )
