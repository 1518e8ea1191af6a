"""Masks of one thing have one number: nested and overlapping ones, in whatever order they come."""

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from samclip_core.answers.things import MAX_COMMON, best_of_each, numbered
from samclip_core.geometry import Geometry
from samclip_core.types import EverythingMask

SIDE = 12
ENDS = st.lists(st.integers(0, SIDE), min_size=2, max_size=2, unique=True).map(sorted)
BOXES = st.lists(st.tuples(ENDS, ENDS), max_size=8)


def mask(score: float, rows: list[int], columns: list[int]) -> EverythingMask:
    logits_hw = np.full((SIDE, SIDE), -1, np.float32)
    logits_hw[slice(*rows), slice(*columns)] = 1
    return EverythingMask(Geometry(SIDE, SIDE, SIDE), logits_hw, 1.0, 1.0, "cup", score)


def shares(one: EverythingMask, other: EverythingMask) -> bool:
    common, *areas = (
        int(cells_hw.sum())
        for cells_hw in (one.inside_hw & other.inside_hw, one.inside_hw, other.inside_hw)
    )
    return common > MAX_COMMON * min(areas)


@given(boxes=BOXES, seed=st.integers(0, 99))
def test_each_mask_is_of_the_best_thing_that_it_shares_in_any_order(boxes: list, seed: int) -> None:
    found = numbered([mask(1 - number / 10, *box) for number, box in enumerate(boxes)])
    best = best_of_each(found)
    assert [one.thing for one in best] == [*range(len(best))]
    for one in found:
        sharing = [other.thing for other in best if shares(one, other)]
        assert one.thing == sharing[0]
        assert one.label_score <= best[one.thing].label_score
        assert one not in best or sharing == [one.thing]
    mixed = random.Random(seed).sample(found, len(found))
    assert [one.thing for one in numbered(mixed)] == [one.thing for one in mixed]


def test_a_cup_its_rim_and_the_cup_with_its_saucer_are_one_thing_and_a_spoon_beside_another() -> (
    None
):
    with_saucer, cup, rim, spoon = [2, 9], [3, 7], [3, 4], [9, 12]
    found = numbered(
        [
            mask(score, [0, 6], columns)
            for score, columns in ((0.9, with_saucer), (0.8, cup), (0.7, spoon), (0.6, rim))
        ]
    )
    assert [one.thing for one in found] == [0, 0, 1, 0]
