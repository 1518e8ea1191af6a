"""Is it there at all? The evidence for texts in a picture, and the probability that follows.

The evidence for a text is ``logit_scale`` × (its cosine − the mean cosine of the background words),
per cell of the dense CLIP map and for the image vector. Against a mean, unlike against the best
background word, a text keeps its evidence beside any surroundings.

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
from samclip_core.geometry import FloatArray
from samclip_core.types import ImageFeatures

PEAK = 0.01
"""The peak of a map is the mean of its highest cells, this fraction of the picture."""

MAP_WEIGHT, POOLED_WEIGHT, OFFSET = 0.466, 0.19, -3.336
"""Log-odds of a text's presence = ``MAP_WEIGHT`` × peak + ``POOLED_WEIGHT`` × evidence of the image
vector + ``OFFSET``. ``python -m training.evaluation.presence`` fits them."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """The evidence of some texts: ``map_Xss`` in the logits frame, zero in padding; ``pooled_X``.

    ``row`` has the index of each text.
    """

    map_Xss: NDArray[np.float32]
    pooled_X: NDArray[np.float32]
    row: Mapping[str, int]

    @classmethod
    def of(
        cls,
        features: ImageFeatures,
        vectors: Mapping[str, FloatArray],
        background: FloatArray,
        logit_scale: float,
    ) -> "Evidence":
        """Compare texts with a picture; ``vectors`` are unit vectors, ``background`` K×D.

        ``features`` need all three outputs. Raises ValueError if one is missing.
        """
        if features.clip_pooled_D is None:
            raise ValueError("these features have no CLIP_POOLED: encode with CLIP_POOLED")
        text_XD = np.stack(list(vectors.values())).astype(np.float32)
        relative_XD = logit_scale * (text_XD - background.astype(np.float32).mean(axis=0))
        map_Xss = to_logits_frame(features, cosine_maps(features, relative_XD))
        pooled_X = relative_XD @ unit(features.clip_pooled_D)
        return cls(map_Xss, pooled_X, {text: index for index, text in enumerate(vectors)})


def probability(peak: float, pooled: float) -> float:
    """Return the probability that a text describes something, from the peak of its evidence."""
    log_odds = MAP_WEIGHT * peak + POOLED_WEIGHT * pooled + OFFSET
    return float(1 / (1 + np.exp(-np.clip(log_odds, -30, 30))))


def peak(map_ss: FloatArray, where_ss: NDArray[np.bool_], cells: int) -> float:
    """Return the mean of the ``cells`` highest values where allowed; -inf if none are."""
    values_N = map_ss[where_ss]
    if not len(values_N):
        return -np.inf
    highest = min(cells, len(values_N))
    return float(np.partition(values_N, -highest)[-highest:].mean())
