"""Pieces of a class map become prompts for the SAM head."""

import numpy as np
import pytest

from samclip_core.answers.map_prompts import (
    MAX_COMPONENTS,
    Component,
    RefinedMask,
    find_components,
    segment_components,
    to_logits_frame,
)
from samclip_core.answers.steps import Terms, run
from samclip_core.geometry import Geometry
from tests.fakes import FakeSamHead, features_of

WIDE = Geometry(640, 1280, 128)
FEATURES = features_of(WIDE, np.zeros((16, 16), int), 1)


def segmented(sam_head: FakeSamHead, components: list[Component]) -> list[RefinedMask]:
    return run(segment_components(Terms.of(sam_head, 64), FEATURES, components), sam_head)


def test_pieces_are_8_connected_and_small_ones_are_left_out() -> None:
    won_ss = np.zeros((64, 64), np.bool_)
    won_ss[2:6, 2:6] = won_ss[6:9, 6:9] = True  # they touch at a corner
    won_ss[20:25, 40:50] = True
    won_ss[30, 5] = True  # one cell of 2048 is below the smallest area
    probability_ss = np.where(won_ss, 0.6, 0.1).astype(np.float32)
    probability_ss[22, 47] = 0.9
    far, near = find_components(FEATURES, probability_ss[None], won_ss[None])
    assert (far.region_ss.sum(), near.region_ss.sum()) == (50, 25)
    assert far.prompt.box == (80, 40, 100, 50)
    assert far.prompt.points == ((95, 45),)
    assert far.score == pytest.approx((49 * 0.6 + 0.9) / 50)
    assert near.prompt.box == (4, 4, 18, 18)


def test_the_number_of_prompts_is_bounded() -> None:
    won_ss = np.zeros((64, 64), np.bool_)
    for y in range(0, 32, 3):
        for x in range(0, 64, 5):
            won_ss[y : y + 2, x : x + 4] = True
    found = find_components(FEATURES, won_ss[None].astype(np.float32), won_ss[None])
    assert len(found) == MAX_COMPONENTS


def test_maps_reach_the_logits_frame_in_place_and_padding_is_zero() -> None:
    classes_hw = np.zeros((16, 16), int)
    maps_Chw = np.ones((1, 8, 16), np.float32)
    maps_Chw[:, :, 8:] = 3
    maps_Css = to_logits_frame(features_of(WIDE, classes_hw, 1), maps_Chw, 64)
    assert maps_Css.shape == (1, 64, 64)
    assert (maps_Css[:, 32:] == 0).all()
    assert (maps_Css[:, :32, :30] == 1).all()
    assert (maps_Css[:, :32, 34:] == 3).all()


def test_an_untrusted_mask_leaves_the_component() -> None:
    objects_ss = np.zeros((64, 64), int)
    objects_ss[3:20, 3:20] = 1
    won_ss = np.zeros((64, 64), np.bool_)
    won_ss[5:15, 5:15] = True
    components = find_components(FEATURES, won_ss[None].astype(np.float32), won_ss[None])
    (trusted,) = segmented(FakeSamHead(objects_ss), components)
    assert trusted.trusted
    np.testing.assert_array_equal(trusted.logits_ss > 0, objects_ss == 1)
    (doubted,) = segmented(FakeSamHead(objects_ss, 0.4), components)
    assert not doubted.trusted
    np.testing.assert_array_equal(doubted.logits_ss > 0, won_ss)
    assert segmented(FakeSamHead(objects_ss), []) == []
