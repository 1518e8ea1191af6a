"""Overlapping crops of a picture, in which a search for everything finds small objects.

Sizes, overlap and order are those of segment_anything's SamAutomaticMaskGenerator.
"""

import math
from itertools import product

import numpy as np

from samclip_core.errors import InvalidRequest
from samclip_core.geometry import Crop

OVERLAP = 512 / 1500
"""Overlap of the crops of the first layer, as a share of the picture's shorter side."""
EDGE = 20.0
"""A box this close to the edge of a crop, in pixels, belongs to an object that the crop cuts."""

MAX_LAYERS = 3
"""Each layer takes four times as long as the one before; three are 84 crops."""

Box = tuple[float, float, float, float]


def check_layers(layers: int) -> None:
    """Raise InvalidRequest unless the number of layers is between 0 and MAX_LAYERS."""
    if not 0 <= layers <= MAX_LAYERS:
        raise InvalidRequest(f"crop_layers is {layers}, expected 0 to {MAX_LAYERS}")


def crops_of(height: int, width: int, layers: int) -> list[Crop]:
    """Return the crops of a picture of ``height``×``width`` pixels, layer by layer.

    Layer n has 2ⁿ × 2ⁿ crops; their overlap shrinks with them. A side of a few pixels has fewer.
    Raises InvalidRequest for a number of layers that is not 0 to MAX_LAYERS.
    """
    check_layers(layers)
    crops = []
    for layer in range(1, layers + 1):
        count = 2**layer
        overlap = int(OVERLAP * min(height, width) * 2 / count)
        crop_height, crop_width = (
            math.ceil((overlap * (count - 1) + side) / count) for side in (height, width)
        )
        for column, row in product(range(count), repeat=2):
            x, y = (crop_width - overlap) * column, (crop_height - overlap) * row
            rest_height, rest_width = min(crop_height, height - y), min(crop_width, width - x)
            if min(rest_height, rest_width) > 0:
                crops.append(Crop(x, y, rest_height, rest_width, height, width))
    return crops


def is_cut(box: Box, crop: Crop) -> bool:
    """Return whether a box of the picture ends at an edge of the crop inside the picture."""
    edges = np.array([crop.x, crop.y, crop.x + crop.width, crop.y + crop.height])
    ends = np.array([0, 0, crop.picture_width, crop.picture_height])
    at_edge = np.abs(np.subtract(box, edges)) <= EDGE
    at_end = np.abs(np.subtract(box, ends)) <= EDGE
    return bool((at_edge & ~at_end).any())
