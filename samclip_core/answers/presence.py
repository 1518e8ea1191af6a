"""The evidence that a text's object is in a picture at all, and the score that follows.

The evidence for a text is ``logit_scale`` × (its cosine − the mean cosine of the background words),
per cell of the dense CLIP map and for the image vector. Compared with their mean, unlike with the
best of them, a text keeps its evidence in any surroundings. Weights that were fitted to the
checkpoint turn it into a probability, together with what a region adds (``ranking``).

Without such weights, the evidence is that of the softmax over the text and all background words,
and the score is the text's share in it: uncalibrated, but without numbers of another checkpoint.

Shape letters: X texts, D width, h w valid cells, s×s cells of the SAM head's
low-resolution logits.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.dense import cosine_maps
from samclip_core.answers.map_prompts import to_logits_frame
from samclip_core.answers.words import Words, log_sums
from samclip_core.answers.zero_shot import pooled
from samclip_core.calibration import Presence
from samclip_core.geometry import FloatArray, Geometry
from samclip_core.types import ImageFeatures

PEAK = 0.01
"""The peak of a map is the mean of its highest cells, this fraction of the picture."""

SHARE = Presence(map_weight=1.0, pooled_weight=0.0, offset=0.0, min_score=0.5)
"""For evidence of the softmax: the share at the peak; by default, more than all background words
together."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """The evidence of some texts: ``map_Xss`` in the logits frame, zero in padding; ``pooled_X``.

    ``picture_ss`` has the cells that hold picture.
    """

    geometry: Geometry
    words: Words
    map_Xss: NDArray[np.float32]
    pooled_X: NDArray[np.float32]
    picture_ss: NDArray[np.bool_]

    @classmethod
    def of(
        cls, features: ImageFeatures, words: Words, side: int, softmax: bool = False
    ) -> "Evidence":
        """Compare texts with a picture; ``side`` is s.

        ``softmax`` compares them for weights that are not fitted: ``SHARE``. ``features`` need both
        outputs of the CLIP head. Raises ValueError if one is missing.
        """
        if softmax:
            logits_Xhw = cosine_maps(features, words.logit_scale * words.text_XD)
            others_Khw = cosine_maps(features, words.logit_scale * words.background_KD)
            others_KN = others_Khw.reshape(len(others_Khw), -1)
            others_XN = log_sums(words.background_XK, others_KN)
            map_Xhw = logits_Xhw - others_XN.reshape(logits_Xhw.shape)
        else:
            map_Xhw = cosine_maps(features, words.relative_XD)
        map_Xss = to_logits_frame(features, map_Xhw, side)
        picture_ss = np.zeros((side, side), np.bool_)
        rows, columns = features.geometry.grid(side)
        picture_ss[:rows, :columns] = True
        pooled_X = words.relative_XD @ pooled(features)
        return cls(features.geometry, words, map_Xss, pooled_X, picture_ss)

    def map_ss(self, text: str) -> NDArray[np.float32]:
        """Return the map of one text."""
        return self.map_Xss[self.words.row[text]]

    def peak(self, text: str, where_ss: NDArray[np.bool_]) -> float:
        """Return the mean of the highest values of a text's map where allowed; -inf if none are."""
        values_N = self.map_ss(text)[where_ss]
        if not len(values_N):
            return -np.inf
        highest = min(max(1, round(PEAK * np.count_nonzero(self.picture_ss))), len(values_N))
        return float(np.partition(values_N, -highest)[-highest:].mean())

    def log_odds(self, weights: Presence, text: str, where_ss: NDArray[np.bool_]) -> float:
        """Return the log-odds of a text's object where allowed, without those of a region."""
        pooled = float(self.pooled_X[self.words.row[text]])
        return float(log_odds(weights, self.peak(text, where_ss), pooled))


def log_odds(weights: Presence, peak: FloatArray | float, pooled: FloatArray | float) -> FloatArray:
    """Return the log-odds that follow from a map's peak and the evidence of the image vector."""
    return np.asarray(weights.map_weight * peak + weights.pooled_weight * pooled + weights.offset)


def probability(log_odds: FloatArray | float) -> NDArray[np.float64]:
    """Return the score, 0 to 1, of log-odds."""
    return np.asarray(1 / (1 + np.exp(-np.clip(log_odds, -30, 30))))
