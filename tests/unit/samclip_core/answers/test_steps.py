"""Work in steps asks no more prompts at once than allowed, and pauses."""

import numpy as np
import pytest

from samclip_core.answers.everything import SAM
from samclip_core.answers.instances import Find
from samclip_core.answers.request import of_part
from samclip_core.answers.semantic import SegmentText
from samclip_core.answers.steps import Done, Steps, Terms, Texts, advance, execute, run
from samclip_core.errors import InvalidLabels
from samclip_core.geometry import Geometry
from samclip_core.types import TextPrompt
from tests import fakes
from tests.close import assert_close
from tests.fakes import FakeSamHead, features_of, with_regions
from tests.tiny import TINY

WIDE = Geometry(640, 1280, 128)
TEXT_D = np.eye(3)


def head() -> FakeSamHead:
    objects_ss = np.zeros((64, 64), int)
    objects_ss[2:30, 3:25], objects_ss[4:14, 30:44], objects_ss[20:29, 50:60] = 1, 2, 3
    return FakeSamHead(objects_ss)


def blocks() -> np.ndarray:
    """Return a class map of 2×2 blocks."""
    y, x = np.mgrid[:16, :16] // 2
    return (y + x) % 3


FEATURES = features_of(WIDE, blocks(), 3)


def everything(terms: Terms) -> Steps:
    return fakes.everything(terms, FEATURES, 9, SAM)


def refined(terms: Terms) -> Steps:
    asked = SegmentText(["a", "b", "c"], refine=True)
    return asked.steps(FEATURES, TEXT_D, TINY["edge"], terms)


@pytest.mark.parametrize("work", [everything, refined])
@pytest.mark.parametrize("at_once", [1, 3, 64])
def test_no_question_has_more_prompts_than_the_terms_say(work, at_once) -> None:
    sam_head = head()
    run(work(Terms.of(sam_head, at_once)), sam_head)
    sizes = [len(prompts) for _, prompts, _ in sam_head.calls]
    assert max(sizes) == at_once or (max(sizes) < at_once and len(sizes) <= 2)
    assert sum(sizes) >= 4


@pytest.mark.parametrize("at_once", [1, 2, 7, 64])
def test_masks_of_everything_do_not_depend_on_the_size_of_the_steps(at_once) -> None:
    expected, found = (run(everything(Terms.of(head(), size)), head()) for size in (32, at_once))
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.mask.logits_hw, theirs.mask.logits_hw)
        assert_close(ours.mask.predicted_iou, theirs.mask.predicted_iou)


def test_finding_objects_pauses_after_each_text_and_asks_nothing() -> None:
    asked = Find({index: TextPrompt(text) for index, text in enumerate("abc")})
    text_XD = TEXT_D[np.arange(3 + len(asked.shared_texts)) % 3]
    features = with_regions(FEATURES, head())
    steps = asked.steps(features, text_XD, TINY["edge"], Terms.of(head(), 1))
    assert [advance(steps, None)] + [advance(steps, []) for _ in range(2)] == [None] * 3
    assert isinstance(advance(steps, []), Done)


def test_labelling_pixels_pauses_and_asks_nothing(monkeypatch) -> None:
    monkeypatch.setattr("samclip_core.answers.semantic.STRIP_VALUES", 2**14)
    asked = SegmentText(["a", "b", "c"])
    expected = run(asked.of_dense_map(FEATURES, TEXT_D, 20.0), head())
    steps = asked.of_dense_map(FEATURES, TEXT_D, 20.0)
    pauses, step = 0, advance(steps, None)
    while not isinstance(step, Done):
        assert step is None
        pauses, step = pauses + 1, advance(steps, [])
    assert pauses > 100
    assert (step.result.label_map_HW == expected.label_map_HW).mean() > 0.999


def test_a_program_says_what_an_error_of_what_it_asks_for_is_about() -> None:
    def program() -> Steps[None]:
        with of_part("prompt 3"):
            yield Texts([" "])

    def ask(_: object) -> None:
        raise InvalidLabels("a label is empty")

    with pytest.raises(InvalidLabels, match="prompt 3: a label is empty"):
        execute(program(), ask)
