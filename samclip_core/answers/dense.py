"""The dense CLIP map compared with texts: one value per class and cell of the grid.

Shape letters: C classes (L labels, plus one for all K background words if there are any), D width,
h w valid cells of the grid (those that hold picture), H W pixels.
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from samclip_core.geometry import FloatArray, Geometry
from samclip_core.types import ImageFeatures

BACKGROUND_WORDS = (
    "background", "sky", "clouds", "grass", "ground", "soil", "sand", "snow", "water", "sea",
    "tree", "leaves", "mountain", "rock", "road", "pavement", "wall", "fence", "building",
    "window", "door", "floor", "ceiling", "carpet", "curtain", "table", "shadow", "blurred texture",
)  # fmt: skip
"""Common surroundings of the objects that labels name."""


WORK_SIDE = 2048
"""Longest side at which pixels are decided before they are enlarged: bounds the work, and is finer
than any grid here."""
STRIP_VALUES = 2**22  # values of all classes in memory at once: 16 MiB


def background_words(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the background words that no label names: with label "grass", grass is excluded."""
    named = set(re.findall(r"\w+", " ".join(labels).lower()))
    return tuple(word for word in BACKGROUND_WORDS if not named.issuperset(word.split()))


def valid_cells(features: ImageFeatures) -> NDArray[np.float32]:
    """Return the dense CLIP map without cells that hold only padding, float32 D×h×w."""
    rows, columns = features.geometry.grid(clip_side(features))
    return features.output("CLIP_DENSE")[:, :rows, :columns].astype(np.float32)


def clip_side(features: ImageFeatures) -> int:
    """Return the number of cells per side of the dense CLIP map."""
    return features.output("CLIP_DENSE").shape[-1]


def cosine_maps(
    features: ImageFeatures, text_LD: FloatArray, background_KD: FloatArray | None = None
) -> NDArray[np.float32]:
    """Return the cosine of each text with each valid cell, float32 C×h×w.

    With background words, an additional last map holds their maximum in each cell.
    """
    dense_Dhw = valid_cells(features)
    maps_Lhw = np.tensordot(text_LD.astype(np.float32), dense_Dhw, axes=1)
    if background_KD is None:
        return maps_Lhw
    maps_Khw = np.tensordot(background_KD.astype(np.float32), dense_Dhw, axes=1)
    return np.concatenate([maps_Lhw, maps_Khw.max(axis=0, keepdims=True)])


def work_size(geometry: Geometry) -> tuple[int, int]:
    """Return the height and width at which pixels are decided before they are enlarged."""
    scale = min(1.0, WORK_SIDE / max(geometry.height, geometry.width))
    return max(1, round(geometry.height * scale)), max(1, round(geometry.width * scale))


def upsampling(
    geometry: Geometry, side: int, height: int, width: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return bilinear weights: ``rows_Hh @ map_hw @ columns_wW`` is the map over the picture.

    ``map_hw`` is the valid part of a side×side grid over the padded frame; height×width is the size
    of the result, which covers the whole picture. Row blocks of ``rows_Hh`` give horizontal strips.
    """
    share_H, share_W = ((np.arange(pixels) + 0.5) / pixels for pixels in (height, width))
    return interpolation(geometry, side, share_H, share_W)


def interpolation(
    geometry: Geometry, side: int, share_H: FloatArray, share_W: FloatArray
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the weights of ``upsampling`` at these shares of the picture's height and width."""
    cells_h, cells_w = geometry.grid(side)
    rows_Hh = _weights(share_H * (geometry.input_height * side / geometry.size), cells_h)
    columns_Ww = _weights(share_W * (geometry.input_width * side / geometry.size), cells_w)
    return rows_Hh, columns_Ww.T


def _weights(position_N: FloatArray, cells: int) -> NDArray[np.float32]:
    """Return linear interpolation weights N×cells at positions whose unit is a cell."""
    position_N = np.clip(position_N - 0.5, 0, cells - 1)
    low_N, number_N = position_N.astype(int), np.arange(len(position_N))
    weights = np.zeros((len(position_N), cells), np.float32)
    weights[number_N, low_N] = 1 - (position_N - low_N)
    weights[number_N, np.minimum(low_N + 1, cells - 1)] += position_N - low_N
    return weights
