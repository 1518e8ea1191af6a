"""Concepts: the mean vector of some examples, which competes with the vectors of texts.

Image vectors have far higher cosines with each other than with texts, whatever they show, so the
plain mean of examples would beat every text. Therefore the mean of all image vectors is subtracted,
and a fraction of it is added again, so that a concept is wrong as often as a text is. Mean and
fraction are fitted to the checkpoint (``samclip calibrate``).

L labels, D width of the CLIP map.
"""

import base64
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.examples import Vectors
from samclip_core.answers.zero_shot import unit
from samclip_core.calibration import ConceptSpace
from samclip_core.errors import InvalidLabels, NotFound
from samclip_core.geometry import FloatArray

PREFIX = "concept:"
"""A label or text that begins with this names a concept."""
MAX_NAME = 100
"""Characters of a name."""
NEGATIVE = 0.5
"""The weight of the negative examples beside the others."""


def check_name(name: str) -> None:
    """Raise InvalidLabels unless this may be the name of a concept."""
    fits = 0 < len(name) <= MAX_NAME and name == name.strip() and name.isprintable()
    if not fits or name.startswith(PREFIX):
        raise InvalidLabels(
            f"{name[:MAX_NAME]!r} is no name of a concept: expected 1 to {MAX_NAME} printable "
            f"characters, without a space at either end or {PREFIX!r} at the beginning"
        )


def name_of(label: str) -> str | None:
    """Return the name of the concept that a label stands for, or None for a text."""
    return label.removeprefix(PREFIX) if label.startswith(PREFIX) else None


def no_concept(name: str) -> NotFound:
    """Return the error for a name that no concept has."""
    return NotFound(
        f"no concept {name[:MAX_NAME]!r}: add it, or take one of the list (samclip concept list)"
    )


def names_in(labels: Sequence[str]) -> list[str]:
    """Return the names of the concepts among labels, each once."""
    return list(dict.fromkeys(name for name in map(name_of, labels) if name is not None))


def texts_in(labels: Sequence[str]) -> list[str]:
    """Return the labels that are texts."""
    return [label for label in labels if name_of(label) is None]


def among_texts(
    labels: Sequence[str], concepts: Mapping[str, FloatArray], text_TD: FloatArray
) -> NDArray[np.float32]:
    """Return a row per label, L×D: those of ``texts_in``, and between them those of ``concepts``.

    Raises NotFound.
    """
    rows, text = [], iter(text_TD)
    for name in map(name_of, labels):
        if name is not None and name not in concepts:
            raise no_concept(name)
        rows.append(next(text) if name is None else concepts[name])
    return np.stack(rows).astype(np.float32)


def of_examples(
    examples: Sequence[Vectors], negative: Sequence[bool], space: ConceptSpace | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the vectors of a concept, D in the space of texts and E in that of the SAM embedding.

    Both have length 1. ``negative`` has a flag per example, at least one of which is false. Without
    a fitted ``space``, D stays in the space of images.
    """
    clip_D, sam_E = (
        _mean(np.stack(vectors), np.array(negative, np.bool_))
        for vectors in zip(*((one.clip_D, one.sam_E) for one in examples), strict=True)
    )
    return (clip_D if space is None else to_texts(clip_D, space)), sam_E


def space_of(mean_D: FloatArray, bias: float) -> ConceptSpace:
    """Return the space of concepts for image vectors with this mean."""
    mean = base64.b64encode(np.asarray(mean_D, "<f2").tobytes()).decode()
    return ConceptSpace(mean=mean, bias=bias)


def to_texts(vector_D: FloatArray, space: ConceptSpace) -> NDArray[np.float32]:
    """Move the mean of image vectors to the space of texts: D, of length 1."""
    return unit(unit(vector_D - space.mean_D) + space.bias * unit(space.mean_D))


def _mean(vectors_ND: FloatArray, negative_N: NDArray[np.bool_]) -> NDArray[np.float32]:
    mean_D = unit(vectors_ND[~negative_N].mean(axis=0))
    if negative_N.any():
        mean_D = unit(mean_D - NEGATIVE * unit(vectors_ND[negative_N].mean(axis=0)))
    return mean_D
