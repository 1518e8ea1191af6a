"""Similarity of a quantised image encoder to its float original. Shape letters as in ``base``."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from samclip_core.geometry import FloatArray


def noise(side: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return one image of fixed random noise, as ``pixels_13SS`` and ``sizes_12``."""
    pixels_13SS = np.random.default_rng(0).integers(0, 256, (1, 3, side, side), np.uint8)
    return pixels_13SS, np.array([[side, side]], np.int64)


def agreement(one: Sequence[FloatArray], other: Sequence[FloatArray]) -> float:
    """Return the smallest cosine between corresponding outputs, each flattened to a vector."""
    cosines = []
    for ours, theirs in zip(one, other, strict=True):
        a, b = (output.astype(np.float64).reshape(-1) for output in (ours, theirs))
        cosines.append(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))
    return float(min(cosines))
