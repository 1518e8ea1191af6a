"""Prompts that do not fit a picture say what is wrong."""

import math

import numpy as np
import pytest

from samclip_core.errors import InvalidPrompt
from samclip_core.geometry import Geometry
from samclip_core.types import EverythingMask, Prompt, Region

GEOMETRY = Geometry(40, 60, 64)


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt(points=((0, 0), (60, 40))),
        Prompt(points=((5, 5),), negative=(True,), box=(0, 0, 60, 40)),
        Prompt(mask_input_hw=np.zeros((16, 16), np.float32)),
    ],
)
def test_good_prompts_pass(prompt: Prompt) -> None:
    assert prompt.validate(GEOMETRY) is None


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt(), "empty"),
        (Prompt(points=((61, 5),)), "outside the image of 60×40"),
        (Prompt(points=((5, -0.1),)), "outside"),
        (Prompt(points=((math.nan, 5),)), "outside"),
        (Prompt(points=((5, 5),), negative=(True, False)), "one flag per point"),
        (Prompt(box=(30, 5, 10, 20)), "inverted"),
        (Prompt(box=(10, 5, 10, 20)), "inverted or empty"),
        (Prompt(box=(0, 0, math.nan, 5)), "not finite"),
        (Prompt(box=(0, 0, 61, 40)), "extends beyond the image"),
        (Prompt(mask_input_hw=np.zeros((16, 8), np.float32)), "square"),
        (Prompt(mask_input_hw=np.full((4, 4), np.inf, np.float32)), "not finite"),
    ],
)
def test_bad_prompts_say_what_is_wrong(prompt: Prompt, message: str) -> None:
    with pytest.raises(InvalidPrompt, match=message):
        prompt.validate(GEOMETRY)


def test_masks_are_made_when_read() -> None:
    logits_hw = np.full((16, 16), -1, np.float32)
    logits_hw[:, :8] = 1
    mask_HW = EverythingMask(GEOMETRY, logits_hw, 0.9, 0.9).mask_HW
    assert mask_HW[:, :29].all()
    assert not mask_HW[:, 31:].any()
    label_map_HW = np.array([[0, 1], [1, -1]], np.int16)
    region = Region("cat", 0.5, 1, 2, label_map_HW)
    np.testing.assert_array_equal(region.mask_HW, [[False, True], [True, False]])
