"""Examples have the mean vectors under their masks; what is no place of an object is refused."""

from dataclasses import replace

import numpy as np
import pytest

from samclip_core.answers.examples import (
    MAX_EXAMPLES,
    ExampleVectors,
    Place,
    Vectors,
    check_examples,
)
from samclip_core.answers.request import NO_TEXTS
from samclip_core.answers.steps import Terms, run
from samclip_core.config import EDGE
from samclip_core.errors import InvalidPrompt, InvalidRequest
from samclip_core.geometry import Geometry
from samclip_core.io.masks import Runs, find_runs
from samclip_core.types import ImageFeatures, Prompt
from tests.fakes import FakeSamHead, features_of

WIDE = Geometry(60, 120, 128)  # enlarged; the lower half of the frame is padding


def classes() -> np.ndarray:
    """Return class 0 to 3 from left to right, and class 4 in the padding."""
    classes_hw = np.full((16, 16), 4)
    classes_hw[:8] = np.arange(16) // 4
    return classes_hw


def features() -> ImageFeatures:
    """Return features whose SAM embedding has four cells per cell of the CLIP map."""
    sam_Dhw = np.eye(5, dtype=np.float16)[classes().repeat(2, 0).repeat(2, 1)].transpose(2, 0, 1)
    return replace(features_of(WIDE, classes(), 5), sam_Dhw=sam_Dhw)


def head() -> FakeSamHead:
    """Return a SAM head for which the classes 0 to 2 are the objects 1 to 3."""
    objects_ss = (classes() + 1).repeat(8, 0).repeat(8, 1)
    return FakeSamHead(np.where(objects_ss > 3, 0, objects_ss))


def vectors(*places: Place) -> list[Vectors]:
    named = {f"example {n}": place for n, place in enumerate(places)}
    asked, sam_head = ExampleVectors(named), head()
    asked.check(WIDE)
    return run(asked.steps(features(), NO_TEXTS, EDGE, Terms.of(sam_head, 8)), sam_head)


def rectangle(x_min: int, x_max: int) -> Runs:
    mask_HW = np.zeros((60, 120), np.bool_)
    mask_HW[:, x_min:x_max] = True
    return find_runs(mask_HW)


def test_the_means_under_the_mask_of_each_place_in_order() -> None:
    box, point, mask = Prompt(box=(31, 2, 59, 58)), Prompt(points=((75, 30),)), rectangle(15, 45)
    second, third, half = vectors(box, point, mask)
    for found, expected in (
        (second, [0, 1, 0, 0, 0]),
        (third, [0, 0, 1, 0, 0]),
        (half, [0.5**0.5, 0.5**0.5, 0, 0, 0]),
    ):
        assert found.area == pytest.approx(0.25)
        np.testing.assert_allclose(found.clip_D, expected, atol=1e-3)
        np.testing.assert_allclose(found.sam_E, expected, atol=1e-3)


def test_a_place_where_nothing_is_found_is_named() -> None:
    nothing = FakeSamHead(np.zeros((128, 128), int))
    steps = ExampleVectors({"example 3": Prompt(points=((110, 30),))}).steps(
        features(), NO_TEXTS, EDGE, Terms.of(nothing, 8)
    )
    step = next(steps)
    assert step is not None
    (answer,) = nothing.segment(step.features, step.prompts, step.multimask)
    answer.logits_Mhw[:] = -8
    with pytest.raises(InvalidPrompt, match="example 3: no object was found there: give its mask"):
        steps.send([answer])


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (Prompt(), "example 7: the place is empty: give a box, points or a mask"),
        (Prompt(box=(0, 0, 121, 60)), "example 7: box .* extends beyond the image of 120×60"),
        (Prompt(points=((1, 61),)), "example 7: point .* lies outside the image"),
        (Prompt(mask_input_hw=np.zeros((4, 4))), "example 7: a mask_input is no place"),
        (find_runs(np.ones((120, 60), np.bool_)), "example 7: the mask has 60×120 pixels"),
        (find_runs(np.zeros((60, 120), np.bool_)), "example 7: the mask is empty"),
    ],
)
def test_a_place_that_does_not_fit(place: Place, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        ExampleVectors({"example 0": rectangle(0, 5), "example 7": place}).check(WIDE)


def test_how_many_examples() -> None:
    check_examples([False] + [True] * (MAX_EXAMPLES - 1))
    for flags in ([], [True]):
        with pytest.raises(InvalidPrompt, match="no example of what is wanted"):
            check_examples(flags)
    with pytest.raises(InvalidPrompt, match="17 examples, at most 16: give fewer"):
        check_examples([False] * (MAX_EXAMPLES + 1))
