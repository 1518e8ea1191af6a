"""Which of a picture's regions does a text describe? Numbers for each pair, and their weights.

What a text adds is a dot product with the region's CLIP vector.

Shape letters: X texts, R regions, D width.
"""

from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.presence import Evidence
from samclip_core.answers.words import Words, log_sums
from samclip_core.answers.zero_shot import unit
from samclip_core.calibration import RegionWeights
from samclip_core.geometry import FloatArray, Geometry
from samclip_core.regions import Regions

LEAST_AREA = 1e-5
"""Added to a region's share of the picture before its logarithm is taken."""
LEAST_REST = 0.01
"""A region that covers more is compared as if this fraction of the picture were outside it."""
TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True, eq=False)
class Compared:
    """Regions of a picture compared with some texts.

    ``contrast_XR`` is the mean evidence in the region above that in the rest of the picture,
    ``log_probability_XR`` the log of the text's share beside the names of the vocabulary.
    """

    evidence: Evidence
    regions: Regions
    border_R: NDArray[np.bool_]
    contrast_XR: NDArray[np.float32]
    log_probability_XR: NDArray[np.float32]

    @classmethod
    def of(cls, evidence: Evidence, regions: Regions) -> "Compared":
        """Compare the regions with the texts of the evidence."""
        words, clip_RD = evidence.words, regions.clip_RD
        return cls(
            evidence,
            regions,
            at_border(evidence.geometry, regions.box_R4),
            contrasts(words.relative_XD, clip_RD, regions.clip_mean_D, regions.area_R),
            log_probabilities(words, clip_RD),
        )

    def log_odds(self, weights: RegionWeights, text: str) -> NDArray[np.float32]:
        """Return what each region adds to the log-odds that it is the text's object."""
        return self.numbers(text) @ np.array(astuple(weights), np.float32)

    def log_quality(self, text: str) -> NDArray[np.float32]:
        """Return the log of predicted IoU × stability × contrast, for weights not fitted."""
        contrast_R = self.contrast_XR[self.evidence.words.row[text]]
        factors = (self.regions.predicted_iou_R, self.regions.stability_R, contrast_R)
        return np.log(np.maximum(np.prod(np.maximum(factors, 0), axis=0), TINY))

    def numbers(self, text: str) -> NDArray[np.float32]:
        """Return the numbers of a text and each region that ``RegionWeights`` weighs: R×6."""
        row, regions = self.evidence.words.row[text], self.regions
        return numbers(
            regions.predicted_iou_R,
            regions.stability_R,
            regions.area_R,
            self.contrast_XR[row],
            self.log_probability_XR[row],
            self.border_R,
        )


def numbers(
    predicted_iou_R: FloatArray,
    stability_R: FloatArray,
    area_R: FloatArray,
    contrast_R: FloatArray,
    log_probability_R: FloatArray,
    border_R: NDArray[np.bool_],
) -> NDArray[np.float32]:
    """Return the numbers that ``RegionWeights`` weighs, R×6; areas are shares of the picture."""
    log_area_R = np.log(area_R.astype(np.float32) + LEAST_AREA)
    columns = (predicted_iou_R, stability_R, log_area_R, contrast_R, log_probability_R, border_R)
    return np.stack(columns, axis=1, dtype=np.float32)


def contrasts(
    relative_XD: NDArray[np.float32], clip_RD: FloatArray, mean_D: FloatArray, area_R: FloatArray
) -> NDArray[np.float32]:
    """Return the mean evidence in each region above that in the rest of the picture, X×R.

    ``relative_XD`` as in Words; ``clip_RD`` and ``mean_D`` as in Regions.
    """
    above_RD = clip_RD.astype(np.float32) - mean_D.astype(np.float32)
    rest_R = np.maximum(1 - area_R.astype(np.float32), LEAST_REST)
    return np.asarray(relative_XD @ above_RD.T / rest_R, np.float32)


def log_probabilities(words: Words, clip_RD: FloatArray) -> NDArray[np.float32]:
    """Return the log of each text's share beside the names of the vocabulary, X×R."""
    region_DR = words.logit_scale * unit(clip_RD).T
    others_XR = log_sums(words.names_XV, words.name_VD @ region_DR)
    return -np.logaddexp(0, others_XR - words.text_XD @ region_DR)


def at_border(geometry: Geometry, box_R4: FloatArray) -> NDArray[np.bool_]:
    """Return which boxes touch the border of the picture."""
    low_R2, high_R2 = np.split(box_R4, 2, axis=1)
    end_2 = np.array([geometry.width, geometry.height]) - 0.5
    return np.asarray((low_R2 < 0.5).any(axis=1) | (high_R2 > end_2).any(axis=1))
