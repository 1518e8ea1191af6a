"""Label maps as plots: one colour per class, over the faded photograph."""

import colorsys

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

NAMED = 4  # labels listed under a map, those of the largest areas
FADED = 0.35  # opacity of the photograph


def colours(count: int) -> NDArray[np.float64]:
    """Return ``count`` RGB colours in [0, 1], one per row; neighbours have distant hues."""
    golden = (5**0.5 - 1) / 2
    hues = (np.arange(count) * golden) % 1
    return np.array([colorsys.hsv_to_rgb(h, 0.55 + 0.4 * (i % 2), 0.9) for i, h in enumerate(hues)])


def draw_labels(
    axes: Axes, image_HW3: NDArray[np.uint8], label_map_HW: NDArray[np.integer], labels: list[str]
) -> None:
    """Draw a map of indices into ``labels`` (-1: none) and list its largest areas below."""
    palette_L3 = np.vstack([colours(len(labels)), np.zeros(3)])  # the last row is -1's
    shown_HW3 = (1 - FADED) * palette_L3[label_map_HW] + FADED * image_HW3 / 255
    axes.imshow(shown_HW3)
    found, area = np.unique(label_map_HW[label_map_HW >= 0], return_counts=True)
    for line, index in enumerate(found[np.argsort(-area)][:NAMED]):
        axes.text(
            0.5,
            -0.03 - 0.08 * line,
            labels[index],
            color=0.75 * palette_L3[index],
            transform=axes.transAxes,
            ha="center",
            va="top",
            fontsize=8,
        )
