"""Zero-shot classification: class embeddings from labels, and a picture's score for each."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.vocabularies import readable
from samclip_core.errors import InvalidLabels
from samclip_core.geometry import FloatArray
from samclip_core.types import ImageFeatures, Score

MAX_LABELS = 10_000


def unit(vectors: FloatArray) -> NDArray[np.float32]:
    """Return float32 vectors of length 1 along the last axis.

    Encoders of lower precision and a float16 cache make lengths slightly inexact.
    """
    vectors = np.asarray(vectors, np.float32)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(np.float32).tiny)


def pooled(features: ImageFeatures) -> NDArray[np.float32]:
    """Return the vector of a whole picture, D of length 1."""
    return unit(features.output("CLIP_POOLED"))


def as_texts(texts: Sequence[str]) -> Sequence[str]:
    """Return the texts; a single string counts as one text, not as its letters.

    Raises InvalidLabels for what is no text, such as an empty cell of a table.
    """
    several = [texts] if isinstance(texts, str) else texts
    for text in several:
        if not isinstance(text, str):
            raise InvalidLabels(f"a label is {text!r:.80}: expected a text")
    return several


def check_labels(labels: Sequence[str], limit: int = MAX_LABELS) -> None:
    """Raise InvalidLabels unless there are 1 to ``limit`` labels and none is blank."""
    if not labels:
        raise InvalidLabels("no labels: give at least one")
    if len(labels) > limit:
        raise InvalidLabels(f"{len(labels)} labels, the limit is {limit}: give fewer")
    if any(not label.strip() for label in labels):
        raise InvalidLabels("a label is empty: give every label some text")


def class_embeddings(
    embed_text: Callable[[Sequence[str]], FloatArray],
    labels: Sequence[str],
    templates: Sequence[str],
) -> NDArray[np.float32]:
    """Return one float32 row of length 1 per label: the normalised mean over the templates.

    ``embed_text`` returns one row of length 1 per text and is called once, with ``class_texts``.
    Raises InvalidLabels.
    """
    texts = class_texts(labels, templates)
    text_XD = np.asarray(embed_text(texts), np.float32)
    return unit(text_XD.reshape(len(labels), -1, text_XD.shape[-1]).mean(axis=1))


def class_texts(labels: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Return the texts of the labels, for each one with every template, in ``readable`` words.

    Each template contains ``{}`` for the label; without templates, the labels are the texts. Raises
    InvalidLabels.
    """
    check_labels(labels)
    for template in templates:
        if "{}" not in template:
            raise InvalidLabels(f"template {template!r} has no {{}}: put it where the label goes")
    words = [readable(label) for label in labels]
    return [template.replace("{}", word) for word in words for template in templates or ["{}"]]


def classify(
    pooled_D: FloatArray,
    text_LD: FloatArray,
    labels: Sequence[str],
    logit_scale: float,
    top_k: int | None = None,
) -> list[Score]:
    """Return the ``top_k`` most likely labels (None or 0: all), best first.

    Rows of ``text_LD`` must have length 1, ``pooled_D`` need not. The score is the softmax of
    ``logit_scale`` × cosine over all labels. Raises InvalidLabels.
    """
    check_labels(labels)
    cosine_L = np.asarray(text_LD, np.float32) @ unit(pooled_D)
    probability_L = softmax(logit_scale * cosine_L)
    order = np.argsort(-cosine_L, kind="stable")[: top_k or None]
    return [Score(labels[i], float(probability_L[i]), float(cosine_L[i])) for i in order]


def softmax(logits: FloatArray, axis: int = 0) -> FloatArray:
    """Return the softmax along ``axis``, safe for any finite logits."""
    exponentials = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return exponentials / exponentials.sum(axis=axis, keepdims=True)
