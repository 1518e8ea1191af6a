"""Objects like some examples, and unlike the negative ones."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from samclip_core.answers.examples import Vectors
from samclip_core.answers.find_alike import FindAlike, Known
from samclip_core.answers.request import NO_TEXTS
from samclip_core.answers.steps import Terms, run
from samclip_core.calibration import UNCALIBRATED, Alike, Likeness
from samclip_core.config import EDGE
from samclip_core.errors import InvalidPrompt
from samclip_core.geometry import Geometry
from samclip_core.regions import Regions
from samclip_core.types import EverythingMask, ImageFeatures, Prompt
from tests.fakes import FakeSamHead

WIDE, SIDE = Geometry(50, 100, 64), 16  # 8 rows of cells hold picture
COSINES = Likeness(
    clip=4.0, sam=4.0, quality=0.0, log_area=0.0, difference=0.0, offset=-4.0, min_score=0.4
)
CONFIG = replace(
    EDGE,
    calibration=replace(
        UNCALIBRATED, alike=Alike(within=replace(COSINES, min_score=0.9), across=COSINES)
    ),
)
APPLE, PEAR, SKY = np.eye(3, dtype=np.float32)


def regions(*each: tuple[slice, np.ndarray]) -> Regions:
    """Return regions of some columns of cells, whose CLIP and SAM vectors are the same."""
    levels_Rss = np.full((len(each), SIDE, SIDE), -127, np.int8)
    for level_ss, (columns, _) in zip(levels_Rss, each, strict=True):
        level_ss[:, columns] = 127
    vector_R3 = np.array([vector for _, vector in each], np.float16).reshape(-1, 3)
    area_R = (levels_Rss > 0).mean(axis=(1, 2)).astype(np.float32)
    box_R4 = np.zeros((len(each), 4), np.float32)
    ones_R = np.ones(len(each), np.float32)
    mean_D = np.zeros(3, np.float16)
    return Regions(levels_Rss, ones_R, ones_R, box_R4, area_R, vector_R3, mean_D, vector_R3)


BASKET = regions(
    (slice(0, 4), APPLE),
    (slice(4, 8), PEAR),
    (slice(8, 12), (2 * APPLE + PEAR) / 5**0.5),
    (slice(12, 16), SKY),
)


def known(vector: np.ndarray, negative: bool = False, here: bool = False) -> Known:
    return Known(Vectors(vector, vector, 0.25), negative, here)


def find(found: Regions, asked: FindAlike) -> list[EverythingMask]:
    features = ImageFeatures(WIDE, regions_N=np.frombuffer(found.pack(), np.uint8))
    sam_head = FakeSamHead(np.zeros((SIDE, SIDE), int))
    asked.check(WIDE)
    return run(asked.steps(features, NO_TEXTS, CONFIG, Terms.of(sam_head, 8)), sam_head)


def columns(masks: Sequence[EverythingMask]) -> list[int]:
    """Return the first column of each mask."""
    return [int(np.flatnonzero(mask.inside_hw.any(axis=0))[0]) for mask in masks]


def test_the_most_similar_is_first_and_what_is_not_similar_is_left_out() -> None:
    found = find(BASKET, FindAlike([known(APPLE)]))
    assert columns(found) == [0, 8]
    cosine = 2 / 5**0.5
    expected = [1 / (1 + np.exp(4 - 8 * each)) for each in (1.0, cosine)]
    assert [mask.label_score for mask in found] == pytest.approx(expected, abs=1e-3)


def test_nothing_is_found_where_nothing_is_alike() -> None:
    assert find(regions((slice(0, 4), SKY)), FindAlike([known(APPLE)])) == []
    assert find(regions(), FindAlike([known(APPLE)])) == []


def test_a_question_may_be_asked_of_several_pictures() -> None:
    asked = FindAlike([known(APPLE)])
    for first in (0, 8):
        assert columns(find(regions((slice(first, first + 4), APPLE)), asked)) == [first]


def test_the_best_of_several_examples_counts() -> None:
    assert columns(find(BASKET, FindAlike([known(PEAR), known(APPLE)]))) == [0, 4, 8]


def test_what_is_more_like_a_negative_example_is_left_out() -> None:
    asked = FindAlike([known(APPLE), known(PEAR, negative=True)], min_score=0.0)
    assert columns(find(BASKET, asked)) == [0, 8, 12]


def test_examples_in_the_same_picture_have_their_own_least_score() -> None:
    found = regions((slice(0, 4), APPLE), (slice(4, 8), (APPLE + PEAR) / 2**0.5))
    assert columns(find(found, FindAlike([known(APPLE, here=True)]))) == [0]
    assert columns(find(found, FindAlike([known(APPLE)]))) == [0, 4]


def test_parts_and_wholes_of_a_better_region_are_left_out() -> None:
    part, whole, other = slice(1, 3), slice(0, 6), slice(5, 9)
    found = find(
        regions(
            (slice(0, 4), APPLE), *((each, BASKET.clip_RD[2]) for each in (part, whole, other))
        ),
        FindAlike([known(APPLE)]),
    )
    assert columns(found) == [0, 5]


def test_a_region_that_is_found_says_which_it_is() -> None:
    found = find(BASKET, FindAlike([known(APPLE)], min_score=0))
    for mask in found:
        assert mask.region is not None
        np.testing.assert_array_equal(mask.logits_hw, BASKET.logits(mask.region))


def test_points_and_a_box_say_where() -> None:
    everywhere = regions(*((slice(x, x + 4), APPLE) for x in (0, 4, 8, 12)))
    inside, outside = Prompt(box=(0, 0, 50, 50)), Prompt(points=((10, 10),), negative=(True,))
    assert sorted(columns(find(everywhere, FindAlike([known(APPLE)], where=inside)))) == [0, 4]
    assert sorted(columns(find(everywhere, FindAlike([known(APPLE)], where=outside)))) == [4, 8, 12]


def test_of_the_masks_of_a_text_the_lower_score_counts() -> None:
    sides = WIDE.grid(SIDE)
    assert sides == (8, 16)
    logits_Mss = np.where(BASKET.levels_Rss > 0, 4, -4).astype(np.float32)
    masks = [
        EverythingMask(WIDE, logits_ss, 1.0, 1.0, "a fruit", score)
        for logits_ss, score in zip(logits_Mss, (0.5, 0.9, 0.97, 0.6), strict=True)
    ]
    map_3ss = np.zeros((3, SIDE, SIDE), np.float32)
    for index, vector in enumerate((APPLE, SKY, PEAR, APPLE)):
        map_3ss[:, :, 4 * index : 4 * index + 4] = vector[:, None, None]
    features = ImageFeatures(WIDE, sam_Dhw=map_3ss, clip_dense_Dhw=map_3ss)
    asked, sam_head = FindAlike([known(APPLE)], masks=masks), FakeSamHead(np.zeros((1, 1), int))
    found = run(asked.steps(features, NO_TEXTS, CONFIG, Terms.of(sam_head, 8)), sam_head)
    assert columns(found) == [12, 0]
    assert [(mask.label, mask.label_score) for mask in found] == [
        ("a fruit", 0.6),
        ("a fruit", 0.5),
    ]


def test_a_prompt_without_a_wanted_example() -> None:
    with pytest.raises(InvalidPrompt, match="no example of what is wanted"):
        FindAlike([known(APPLE, negative=True)]).check(WIDE)
