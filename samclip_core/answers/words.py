"""The texts of a request, and the words that each of them is compared with.

All texts are compared with the same words: background words, common surroundings of what texts
describe, and the names of a vocabulary, of which many are in a picture. Words that mean the same as
a text do not count against it.

Shape letters: X texts, K background words, V names of the vocabulary, D width, N anything.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.dense import BACKGROUND_WORDS
from samclip_core.answers.labels import readable
from samclip_core.answers.vocabularies import names_of
from samclip_core.geometry import FloatArray

BESIDE = (*BACKGROUND_WORDS, *names_of("coco"))
"""The words beside every text."""
SAME = 0.2
"""A word means the same as a text if it is less than this fraction as far from it as words are on
average: the cosines of text encoders differ in range."""


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
    near_XN = distance_XN < SAME * distance_XN.mean(axis=1, keepdims=True)
    return np.array(shared_XN) | near_XN


def log_sums(counts_XK: NDArray[np.bool_], logits_KN: FloatArray) -> NDArray[np.float32]:
    """Return the log of the sum of exponentials of the logits that count for each text, X×N."""
    highest_N = logits_KN.max(axis=0)
    sums_XN = counts_XK.astype(np.float32) @ np.exp(logits_KN - highest_N)
    return np.asarray(np.log(np.maximum(sums_XN, np.finfo(np.float32).tiny)) + highest_N)
