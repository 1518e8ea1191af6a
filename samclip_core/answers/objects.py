"""The objects of a picture: those of its regions that a search for objects compares."""

import numpy as np
from numpy.typing import NDArray

from samclip_core.geometry import Geometry
from samclip_core.regions import Regions

MOST = 100
"""Most objects of a picture."""
MIN_AREA = 0.001
"""Smallest share of its picture that an object has: a vector of less says nothing."""
MIN_PIXELS = 16
"""Smallest area of an object in pixels: in a tiny picture, less may have no pixel."""


def choose(regions: Regions, geometry: Geometry) -> NDArray[np.intp]:
    """Return the indices of the regions that are objects, the most certain masks first."""
    least = max(MIN_AREA, MIN_PIXELS / (geometry.height * geometry.width))
    order_R = np.argsort(-regions.predicted_iou_R * regions.stability_R, kind="stable")
    return order_R[regions.area_R[order_R] >= least][:MOST]
