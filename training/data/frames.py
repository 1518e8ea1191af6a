"""Cut square pieces out of photographs: frames with the masks in them, and crops without masks.

COCO's run-length encoded masks are cut as vertical strips, without ever decoding them to pixels: a
photograph of SA-1B has dozens of masks of its own size, of which a frame needs a few thousand cells
each. CLIP models are trained on square crops without padding, so a teacher's view is cut from the
photograph at the teacher's own size and not from the student's pixels.

R: strips of a mask.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from samclip_core.config import Filter
from samclip_core.io import image
from samclip_core.io.masks import decode_runs
from training.data.sample import Sample, reading

SHARES = (0.7, 1.0)
"""Sides of crops, as shares of the photograph's shorter side."""
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Strips(NamedTuple):
    """The vertical strips of a mask: rows ``top_R`` to ``bottom_R`` (exclusive) of ``column_R``."""

    column_R: Integers
    top_R: Integers
    bottom_R: Integers


class Rectangles(NamedTuple):
    """Disjoint rectangles of positive area, in pixels or cells of a frame."""

    left_R: Floats
    top_R: Floats
    right_R: Floats
    bottom_R: Floats

    def box(self) -> tuple[float, float, float, float]:
        """Return the tight box around all rectangles, x0, y0, x1, y1; zeros if there are none."""
        if not len(self.left_R):
            return 0.0, 0.0, 0.0, 0.0
        return self.left_R.min(), self.top_R.min(), self.right_R.max(), self.bottom_R.max()


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
    sizes_B2 = torch.tensor([frame.valid for frame in frames])
    return torch.from_numpy(stacked_views([frame.pixels_3SS for frame in frames])), sizes_B2


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


def strips(rle: dict[str, Any]) -> Strips:
    """Return the strips of a compressed COCO RLE. Raises ValueError if it is damaged."""
    height, width = rle["size"]
    counts = rle["counts"]
    runs = decode_runs(counts.encode() if isinstance(counts, str) else counts, height, width)
    first = runs.start_K // height
    columns = (runs.end_K - 1) // height - first + 1  # a run may continue in the next columns
    run = np.repeat(np.arange(len(first)), columns)
    column_R = first[run] + np.arange(len(run)) - (np.cumsum(columns) - columns)[run]
    top_R = np.maximum(runs.start_K[run] - column_R * height, 0)
    bottom_R = np.minimum(runs.end_K[run] - column_R * height, height)
    return Strips(column_R, top_R, bottom_R)


def coverage(rectangles: Rectangles, cells: int) -> NDArray[np.float32]:
    """Return the exact share of each cell that the rectangles cover, ``share_mm``."""
    left_R, top_R, right_R, bottom_R = rectangles
    share_mm = np.zeros((cells, cells), np.float32)
    if not len(left_R):
        return share_mm
    x0, y0 = int(left_R.min()), int(top_R.min())
    x1, y1 = int(np.ceil(right_R.max())), int(np.ceil(bottom_R.max()))
    width, height = x1 - x0 + 2, y1 - y0 + 2
    column_4R, across_4R = _steps(left_R - x0, right_R - x0)
    row_4R, down_4R = _steps(top_R - y0, bottom_R - y0)
    place_44R = row_4R[:, None] * width + column_4R
    weight_44R = down_4R[:, None] * across_4R
    sums = np.bincount(place_44R.ravel(), weight_44R.ravel(), height * width)
    sums_hw = sums.reshape(height, width)[::-1, ::-1].cumsum(0).cumsum(1)[::-1, ::-1]
    share_mm[y0:y1, x0:x1] = sums_hw[1:-1, 1:-1]
    return share_mm


def _steps(low_R: Floats, high_R: Floats) -> tuple[Integers, Floats]:
    """Return ``index_4R`` and ``weight_4R`` of four steps per interval.

    The sum of the steps after index i is the interval's share of cell i.
    """
    ends_2R = np.stack([high_R, low_R])
    index_2R = ends_2R.astype(np.int64)
    part_2R = ends_2R - index_2R
    sign_21 = np.array([[1.0], [-1.0]])
    index_4R = np.concatenate([index_2R, index_2R + 1])
    return index_4R, np.concatenate([sign_21 * (1 - part_2R), sign_21 * part_2R])


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
        seen = [resized(crop_LL3, (view.side, view.side), view.filter) for view in views]
        if self.flip:
            seen = [np.ascontiguousarray(pixels_LL3[:, ::-1]) for pixels_LL3 in seen]
        return [pixels_LL3.transpose(2, 0, 1) for pixels_LL3 in seen]


def stacked_views(views: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Return ``B3LL`` of views ``3LL``, the channels last in memory as theirs are."""
    pixels_BLL3 = np.stack([pixels_3LL.transpose(1, 2, 0) for pixels_3LL in views])
    return pixels_BLL3.transpose(0, 3, 1, 2)
