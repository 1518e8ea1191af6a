"""Which masks show the same thing? Masks are compared with better ones of the same prompt.

A mask that is nearly a better one, or little more than one, says nothing new. Another one that
shares most of the smaller of both with the best mask of a thing is a further size of it, such as
the cup without its saucer: only the caller knows which of them is meant.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from samclip_core.types import EverythingMask

MAX_IOU, MAX_COVER = 0.5, 0.8
"""A mask is left out if its IoU with a better mask of the same text is above ``MAX_IOU``, or if it
covers more than ``MAX_COVER`` of one."""
MAX_COMMON = 0.5
"""Masks of different things share at most this part of the smaller one. Two things side by side
share little, and a part is mostly inside its whole, so that one half parts both in any model."""


def is_double(
    area: int, better: int, common: int, max_iou: float = MAX_IOU, max_cover: float = MAX_COVER
) -> bool:
    """Return whether a mask says nothing that a better one does not, by their areas."""
    return common > max_iou * (area + better - common) or common > max_cover * better


def is_size(area: int, best: int, common: int) -> bool:
    """Return whether a mask shows the thing of another one, by their areas."""
    return common > MAX_COMMON * min(area, best)


class Things:
    """The best mask of each thing, as bits: a request may compare each mask with each."""

    def __init__(self, most: int) -> None:
        self._words_KW = np.empty((most, 0), np.uint64)
        self._cells_K = np.empty(most, np.int64)
        self.count = 0

    def add(self, inside_hw: NDArray[np.bool_]) -> int:
        """Return the number of the thing that a mask shows, ``count`` before the call if it is new.

        Better masks are added first.
        """
        bits = np.packbits(inside_hw)
        words_W = np.pad(bits, (0, -len(bits) % 8)).view(np.uint64)
        if not self.count:
            self._words_KW = np.empty((len(self._cells_K), len(words_W)), np.uint64)
        cells, known = int(np.count_nonzero(inside_hw)), slice(self.count)
        common_K = np.bitwise_count(self._words_KW[known] & words_W).sum(axis=1, dtype=np.int64)
        same_K = common_K > MAX_COMMON * np.minimum(self._cells_K[known], cells)
        if same_K.any():
            return int(same_K.argmax())
        self._words_KW[self.count], self._cells_K[self.count] = words_W, cells
        self.count += 1
        return self.count - 1


def best_of_each(masks: Iterable[EverythingMask]) -> list[EverythingMask]:
    """Return the first mask of each thing."""
    first = dict[int, EverythingMask]()
    for mask in masks:
        first.setdefault(mask.thing, mask)
    return [*first.values()]


def numbered(masks: Sequence[EverythingMask]) -> list[EverythingMask]:
    """Return masks with the numbers of their things, which do not depend on their order."""
    things, number = Things(len(masks)), dict[int, int]()
    for index in np.argsort([-mask.label_score for mask in masks], kind="stable"):
        number[index] = things.add(masks[index].inside_hw)
    return [replace(mask, thing=number[index]) for index, mask in enumerate(masks)]
