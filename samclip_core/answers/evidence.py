"""Which of a picture's regions does a text describe, and is its object there at all?

Every text competes with two fixed lists of words. The background words name common surroundings of
objects, such as grass. The vocabulary names objects, many of which may be in one picture. A text
does not compete with words that mean the same.

The evidence for a text is ``logit_scale`` × (its cosine − the mean cosine of the background words),
per cell of the dense CLIP map and for the image vector. The mean is subtracted, not the maximum, so
that the evidence hardly depends on which background a picture has. Weights that were fitted to the
checkpoint turn the evidence into a probability. They also weigh the numbers of a region: its
quality, its place, and how well its CLIP vector fits the text.

Without fitted weights, the score is the text's share in a softmax over itself and all background
words. Such a score is not calibrated, but needs no numbers that belong to another checkpoint.

Shape letters: X texts, K background words, V names of the vocabulary, R regions, D width, N
anything, h w valid cells, s×s cells of the SAM head's low-resolution logits.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.dense import BACKGROUND_WORDS, cosine_maps
from samclip_core.answers.map_prompts import to_logits_frame
from samclip_core.answers.vocabularies import names_of, readable
from samclip_core.answers.zero_shot import pooled, unit
from samclip_core.calibration import Presence, RegionWeights
from samclip_core.geometry import FloatArray, Geometry
from samclip_core.regions import Regions
from samclip_core.types import ImageFeatures

BESIDE = (*BACKGROUND_WORDS, *names_of("coco"))
"""The words beside every text."""
SAME_MEANING = 0.2
"""A word whose distance from a text is below this fraction of the mean distance of all words means
the same. Distances are relative because text encoders differ in the range of their cosines."""


@dataclass(frozen=True, eq=False)
class Words:
    """Texts by their ``row``, with vectors of length 1, and the words beside them.

    ``background_XK`` and ``names_XV`` say which words count beside which text.
    """

    row: Mapping[str, int]
    text_XD: NDArray[np.float32]
    background_KD: NDArray[np.float32]
    background_XK: NDArray[np.bool_]
    name_VD: NDArray[np.float32]
    names_XV: NDArray[np.bool_]
    logit_scale: float

    @classmethod
    def of(cls, texts: Sequence[str], vectors_ND: FloatArray, logit_scale: float) -> "Words":
        """Take different texts; ``vectors_ND`` has a row for each, then for each of ``BESIDE``."""
        vectors_ND = vectors_ND.astype(np.float32)
        text_XD, beside_ND = vectors_ND[: len(texts)], vectors_ND[len(texts) :]
        count_XN = ~_mean_the_same(texts, text_XD, beside_ND)
        background_XK, names_XV = np.split(count_XN, [len(BACKGROUND_WORDS)], axis=1)
        background_XK[~background_XK.any(axis=1)] = True  # a text of all of them
        background_KD, name_VD = np.split(beside_ND, [len(BACKGROUND_WORDS)])
        row = {text: index for index, text in enumerate(texts)}
        return cls(row, text_XD, background_KD, background_XK, name_VD, names_XV, logit_scale)

    @cached_property
    def relative_XD(self) -> NDArray[np.float32]:
        """``logit_scale`` × (each text − the mean of its background words).

        The product with a vector of a picture is the evidence for the text there.
        """
        share_XK = self.background_XK / self.background_XK.sum(axis=1, keepdims=True)
        mean_XD = share_XK.astype(np.float32) @ self.background_KD
        return np.asarray(self.logit_scale * (self.text_XD - mean_XD), np.float32)


def _parts(text: str) -> set[str]:
    return set(re.findall(r"\w+", readable(text).lower()))


_PARTS_N = [_parts(word) for word in BESIDE]


def _mean_the_same(
    texts: Sequence[str], text_XD: FloatArray, beside_ND: FloatArray
) -> NDArray[np.bool_]:
    """Return which words of ``BESIDE`` share a part with each text, or are near to it, X×N."""
    parts_X = [_parts(text) for text in texts]
    shared_XN = [[not own.isdisjoint(parts) for parts in _PARTS_N] for own in parts_X]
    distance_XN = 1 - text_XD @ beside_ND.T
    near_XN = distance_XN < SAME_MEANING * distance_XN.mean(axis=1, keepdims=True)
    return np.array(shared_XN) | near_XN


def log_sums(counts_XK: NDArray[np.bool_], logits_KN: FloatArray) -> NDArray[np.float32]:
    """Return the log of the sum of exponentials of the logits that count for each text, X×N."""
    highest_N = logits_KN.max(axis=0)
    sums_XN = counts_XK.astype(np.float32) @ np.exp(logits_KN - highest_N)
    return np.asarray(np.log(np.maximum(sums_XN, np.finfo(np.float32).tiny)) + highest_N)


PEAK = 0.01
"""The peak of a map is the mean of its highest cells, this fraction of the picture."""

SHARE = Presence(map_weight=1.0, pooled_weight=0.0, offset=0.0, min_score=0.5)
"""The weights of the softmax's evidence: a text's score is its share at the peak of the map, and an
object is there if this share is above one half."""


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

        ``softmax`` returns the evidence that ``SHARE`` weighs, where no weights are fitted.
        ``features`` need both outputs of the CLIP head. Raises ValueError if one is missing.
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


LEAST_AREA = 1e-5
"""Added to a region's share of the picture before its logarithm is taken."""
LEAST_REST = 0.01
"""The least fraction of a picture that counts as outside a region; it divides the contrast."""
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
