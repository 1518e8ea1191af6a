"""The objects of a picture: those of its regions that a search for objects compares.

R objects, D width of the CLIP map.
"""

from dataclasses import astuple, dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.evidence import Words, at_border, contrasts, log_probabilities, numbers
from samclip_core.answers.zero_shot import unit
from samclip_core.calibration import RegionWeights
from samclip_core.config import SamClipConfig
from samclip_core.geometry import FloatArray, Geometry
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


class Numbers(NamedTuple):
    """What a picture's objects are compared by; the arrays as in Regions, and ``border_R``."""

    predicted_iou_R: FloatArray
    stability_R: FloatArray
    area_R: FloatArray
    border_R: NDArray[np.bool_]
    clip_RD: FloatArray
    clip_mean_D: FloatArray

    @classmethod
    def of(cls, regions: Regions, chosen_R: NDArray[np.intp], geometry: Geometry) -> Self:
        """Take the regions of these indices."""
        return cls(
            regions.predicted_iou_R[chosen_R],
            regions.stability_R[chosen_R],
            regions.area_R[chosen_R],
            at_border(geometry, regions.box_R4[chosen_R]),
            regions.clip_RD[chosen_R],
            regions.clip_mean_D,
        )


@dataclass(frozen=True, eq=False)
class Sought:
    """A vector of length 1 to search for; if it is of a text, ``words`` holds this text alone."""

    vector_D: NDArray[np.float32]
    logit_scale: float
    weights: RegionWeights | None
    words: Words | None = None

    @classmethod
    def of(
        cls, vector_D: NDArray[np.float32], config: SamClipConfig, words: Words | None = None
    ) -> Self:
        """Seek with the weights of a checkpoint, which may have none."""
        presence = config.fitted.presence
        weights = presence.regions if presence else None
        return cls(vector_D, config.logit_scale, weights, words)

    def best(self, *parts: Numbers) -> int:
        """Return the object that it is most likely to mean, without weights the nearest one.

        The objects are those of a picture, then of its tiles. The nearest vector alone is often
        that of a part, or of something beside the thing.
        """
        return int(np.concatenate([*map(self._scores, parts)]).argmax())

    def _scores(self, found: Numbers) -> NDArray[np.float32]:
        if self.weights is None:
            return unit(found.clip_RD) @ self.vector_D
        relative_XD, log_probability_R = self.logit_scale * self.vector_D[None], 0 * found.area_R
        if self.words is not None:
            relative_XD = self.words.relative_XD
            (log_probability_R,) = log_probabilities(self.words, found.clip_RD)
        (contrast_R,) = contrasts(relative_XD, found.clip_RD, found.clip_mean_D, found.area_R)
        quality = (found.predicted_iou_R, found.stability_R, found.area_R)
        numbers_RF = numbers(*quality, contrast_R, log_probability_R, found.border_R)
        return numbers_RF @ np.array(astuple(self.weights), np.float32)
