"""The built-in vocabularies: the categories of two data sets, by the names that people say."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from samclip_core.answers.labels import readable
from samclip_core.errors import InvalidLabels

FOLDER = Path(__file__).parents[1] / "vocabularies"
VOCABULARIES = ("coco", "lvis")
"""``coco``: the 133 things and stuff of COCO's panoptic task; ``lvis``: the 1,203 of LVIS v1."""


@cache
def names_of(vocabulary: str) -> tuple[str, ...]:
    """Return the names of a vocabulary in the order of its ids. Raises InvalidLabels."""
    if vocabulary not in VOCABULARIES:
        raise InvalidLabels(
            f"the vocabulary {vocabulary[:80]!r} is unknown: choose one of "
            f"{', '.join(VOCABULARIES)}, or send labels"
        )
    spelled = (FOLDER / f"{vocabulary}.txt").read_text(encoding="utf-8").split("\n")[:-1]
    return tuple(map(readable, spelled))


def labels_or_names(labels: Sequence[str], vocabulary: str) -> Sequence[str]:
    """Return the labels, or the names of the vocabulary if there is one. Raises InvalidLabels."""
    if labels and vocabulary:
        raise InvalidLabels("labels and vocabulary exclude each other: send one of them")
    return names_of(vocabulary) if vocabulary else labels
