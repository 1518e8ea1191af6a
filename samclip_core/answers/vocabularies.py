"""The built-in vocabularies: the categories of two data sets, in the words of a text encoder."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from samclip_core.errors import InvalidLabels

_SUFFIXES = ("-merged", "-other", "-stuff")
_MADE_OF = ("floor", "wall")


def readable(label: str) -> str:
    """Return the words of a label from a data set; any other text is unchanged.

    COCO's "tree-merged" is "tree", "wall-brick" is "brick wall", and underscores are spaces. Other
    hyphens are kept, as in "t-shirt".
    """
    words = " ".join(label.split("_")).strip()
    while words.endswith(_SUFFIXES):
        words = words.rpartition("-")[0]
    kind, _, which = words.partition("-")
    if which and kind in _MADE_OF:
        return f"{which} {kind}"
    return f"window {which}" if which and kind == "window" else words or label


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
