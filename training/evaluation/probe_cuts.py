"""Random cuts of labelled photographs, drawn again in every epoch, to train a probe's heads.

S side of the frame, t side of its label map in cells.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from samclip_core.io.image import ImageLimits, decode
from training.evaluation.layouts import Mapped
from training.evaluation.measures import class_rows

LABEL_STRIDE = 4  # pixels of the frame per side of a label cell
IGNORED = -1
SCALES = (0.5, 2.0)  # of the longer side to the frame, as mmsegmentation's recipes for VOC and ADE
AREAS = (0.08, 1.0)  # of a crop to the photograph, as MAE's linear probing (arXiv 2111.06377)
RATIOS = (3 / 4, 4 / 3)  # of a crop's sides

Cut = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]
"""``pixels_3SS``, the (height, width) that the photograph covers, class indices ``labels_tt``."""
Draw = Callable[[NDArray[np.uint8], NDArray[np.integer], int, np.random.Generator], Cut]


class Cuts(Dataset[Cut]):
    """One random cut of each photograph per epoch; it depends on the seed, epoch and index."""

    def __init__(
        self, pictures: Sequence[Mapped], values: list[int], size: int, draw: Draw, seed: int
    ) -> None:
        """Cut frames of ``size`` pixels; classes are indices into ``values``."""
        self.pictures, self.values = pictures, values
        self.size, self.draw, self.seed, self.epoch = size, draw, seed, 0

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Cut:
        picture = self.pictures[index]
        random = np.random.default_rng((self.seed, self.epoch, index))
        image_HW3 = decode(picture.read(), ImageLimits())
        return self.draw(image_HW3, class_rows(picture.labels(), self.values), self.size, random)


def draw_window(
    image_HW3: NDArray[np.uint8],
    row_HW: NDArray[np.integer],
    size: int,
    random: np.random.Generator,
) -> Cut:
    """Scale a photograph at random, cut a window of the frame out of it, and flip every second."""
    scale = size / max(image_HW3.shape) * random.uniform(*SCALES)
    height, width = (max(1, round(side * scale)) for side in image_HW3.shape[:2])
    top, left = (int(random.integers(max(side - size, 0) + 1)) for side in (height, width))
    window = np.s_[top : top + size, left : left + size]
    image = cv2.resize(image_HW3, (width, height), interpolation=_smooth(scale))[window]
    rows = cv2.resize(
        row_HW.astype(np.int16), (width, height), interpolation=cv2.INTER_NEAREST_EXACT
    )[window]
    if random.random() < 0.5:
        image, rows = image[:, ::-1], rows[:, ::-1]
    return _framed(image, rows, size)


def draw_crop(
    image_HW3: NDArray[np.uint8],
    row_11: NDArray[np.integer],
    size: int,
    random: np.random.Generator,
) -> Cut:
    """Scale a random crop of a photograph to the whole frame, and flip every second one."""
    height, width = image_HW3.shape[:2]
    area = height * width * random.uniform(*AREAS)
    ratio = np.exp(random.uniform(*np.log(RATIOS)))
    rows = min(height, max(1, round(np.sqrt(area / ratio))))
    columns = min(width, max(1, round(np.sqrt(area * ratio))))
    top = int(random.integers(height - rows + 1))
    left = int(random.integers(width - columns + 1))
    crop_HW3 = image_HW3[top : top + rows, left : left + columns]
    smooth = _smooth(size / max(rows, columns))
    image_SS3 = cv2.resize(crop_HW3, (size, size), interpolation=smooth)
    if random.random() < 0.5:
        image_SS3 = image_SS3[:, ::-1]
    pixels_3SS = np.ascontiguousarray(image_SS3.transpose(2, 0, 1))
    return pixels_3SS, np.array([size, size]), row_11.astype(np.int64)


def _smooth(scale: float) -> int:
    return cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR


def _framed(image_HW3: NDArray[np.uint8], row_HW: NDArray[np.integer], size: int) -> Cut:
    """Put a window into the top-left corner of the frame; the rest is padding without a class."""
    height, width = image_HW3.shape[:2]
    pixels_3SS = np.zeros((3, size, size), np.uint8)
    pixels_3SS[:, :height, :width] = image_HW3.transpose(2, 0, 1)
    labels_SS = np.full((size, size), IGNORED, np.int16)
    labels_SS[:height, :width] = row_HW
    side = size // min(LABEL_STRIDE, size)
    labels_tt = cv2.resize(labels_SS, (side, side), interpolation=cv2.INTER_NEAREST_EXACT)
    return pixels_3SS, np.array([height, width]), labels_tt.astype(np.int64)
