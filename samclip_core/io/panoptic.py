"""One picture of all masks, in the format of COCO's panoptic task.

A segment's id is the colour of its pixels, red + 256 × green + 65536 × blue; black is no segment.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from samclip_core.io.masks import LabelRuns, runs_of_logits
from samclip_core.types import EverythingMask

_STRIDE = 0x9E3779
"""Odd, so that its multiples modulo 2²⁴ are different colours, and far apart."""


@dataclass(frozen=True)
class Segment:
    """The visible pixels of the mask with this ``index``; ``bbox`` is x, y, width and height."""

    id: int
    index: int
    area: int
    bbox: tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class PanopticPicture:
    """An RGB PNG file of the picture's size, and its segments, largest first."""

    png: bytes
    segments: list[Segment]


def paint(found: Sequence[EverythingMask], height: int, width: int) -> PanopticPicture:
    """Paint masks over each other in the order given; leave out those that are covered."""
    down_N = np.full(height * width, -1, np.int32)  # column-major, as runs are
    for index, mask in enumerate(found):
        runs = runs_of_logits(mask.geometry, mask.logits_hw, mask.crop)
        for start, end in zip(runs.start_K.tolist(), runs.end_K.tolist(), strict=True):
            down_N[start:end] = index
    index_HW = down_N.reshape(width, height).T
    area_M = np.bincount(down_N + 1, minlength=len(found) + 1)[1:]
    label_runs = LabelRuns(np.ascontiguousarray(index_HW))
    segments = []
    for index in np.argsort(-area_M, kind="stable").tolist():
        if area_M[index]:
            x_min, y_min, x_max, y_max = label_runs.of(index).box
            bbox = (x_min, y_min, x_max - x_min, y_max - y_min)
            segments.append(Segment(_id(index), index, int(area_M[index]), bbox))
    return PanopticPicture(_to_png(index_HW, len(found)), segments)


def _id(index: int) -> int:
    return (index + 1) * _STRIDE % 2**24


def _to_png(index_HW: NDArray[np.integer], count: int) -> bytes:
    id_M = np.array([0, *map(_id, range(count))])
    colour_M3 = np.stack([id_M >> 16, id_M >> 8, id_M], axis=1).astype(np.uint8)  # blue first
    pixels_HW3 = np.ascontiguousarray(colour_M3[index_HW + 1])
    return cv2.imencode(".png", pixels_HW3, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
