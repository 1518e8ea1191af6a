"""Is it there at all? The evidence for texts in a picture, and the score that follows.

The evidence for a text is ``logit_scale`` × (its cosine − the mean cosine of the background words),
per cell of the dense CLIP map and for the image vector. Against a mean, unlike against the best
background word, a text keeps its evidence beside any surroundings. Weights that were fitted to the
checkpoint turn it into a probability.

Without such weights, the evidence is that of the softmax over the text and all background words,
and the score is the text's share in it: uncalibrated, but without numbers of another checkpoint.

Shape letters: X texts, K background words, D width, h w valid cells, s×s cells of the SAM head's
low-resolution logits.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.dense import cosine_maps
from samclip_core.answers.map_prompts import to_logits_frame
from samclip_core.answers.zero_shot import unit
from samclip_core.config import Presence
from samclip_core.geometry import FloatArray
from samclip_core.types import ImageFeatures

PEAK = 0.01
"""The peak of a map is the mean of its highest cells, this fraction of the picture."""

SHARE = Presence(map_weight=1.0, pooled_weight=0.0, offset=0.0, min_score=0.5)
"""For evidence of the softmax: the share at the peak; by default, more than all background words
together."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """The evidence of some texts: ``map_Xss`` in the logits frame, zero in padding; ``pooled_X``.

    ``row`` has the index of each text, ``picture_ss`` the cells that hold picture.
    """

    map_Xss: NDArray[np.float32]
    pooled_X: NDArray[np.float32]
    row: Mapping[str, int]
    picture_ss: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        features: ImageFeatures,
        vectors: Mapping[str, FloatArray],
        background_KD: FloatArray,
        logit_scale: float,
        softmax: bool = False,
    ) -> "Evidence":
        """Compare texts with a picture; ``vectors`` and ``background_KD`` have length 1.

        ``softmax`` compares them for weights that are not fitted: ``SHARE``. ``features`` need all
        three outputs. Raises ValueError if one is missing.
        """
        if features.clip_pooled_D is None:
            raise ValueError("these features have no CLIP_POOLED: encode with CLIP_POOLED")
        text_XD = np.stack(list(vectors.values())).astype(np.float32)
        mean_D = background_KD.astype(np.float32).mean(axis=0)
        relative_XD = logit_scale * (text_XD - mean_D)
        map_Xhw = cosine_maps(features, relative_XD)
        if softmax:
            others_Khw = cosine_maps(features, logit_scale * (background_KD - mean_D))
            map_Xhw -= np.logaddexp.reduce(others_Khw, axis=0)
        map_Xss = to_logits_frame(features, map_Xhw)
        picture_ss = np.zeros(map_Xss.shape[1:], np.bool_)
        rows, columns = features.geometry.grid(len(picture_ss))
        picture_ss[:rows, :columns] = True
        pooled_X = relative_XD @ unit(features.clip_pooled_D)
        row = {text: index for index, text in enumerate(vectors)}
        return cls(map_Xss, pooled_X, row, picture_ss)

    def peak(self, text: str, where_ss: NDArray[np.bool_]) -> float:
        """Return the mean of the highest values of a text's map where allowed; -inf if none are."""
        values_N = self.map_Xss[self.row[text]][where_ss]
        if not len(values_N):
            return -np.inf
        highest = min(max(1, round(PEAK * np.count_nonzero(self.picture_ss))), len(values_N))
        return float(np.partition(values_N, -highest)[-highest:].mean())


def score(
    weights: Presence, peak: FloatArray | float, pooled: FloatArray | float
) -> NDArray[np.float64]:
    """Return the score, 0 to 1, of a map's peak and the evidence of the image vector."""
    log_odds = weights.map_weight * peak + weights.pooled_weight * pooled + weights.offset
    return np.asarray(1 / (1 + np.exp(-np.clip(log_odds, -30, 30))))
