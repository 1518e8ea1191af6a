import numpy as np
import pytest

from samclip_core.answers.clicks import added
from samclip_core.errors import InvalidPrompt
from samclip_core.model import SamClip
from samclip_core.types import Prompt
from tests.in_process import png


def test_points_add_up_and_a_later_box_replaces_the_first():
    prompt = added(added(Prompt(), [(10, 10)], [False]), [(5, 6), (7, 8)], [True, False])
    assert prompt.points == ((10, 10), (5, 6), (7, 8))
    assert prompt.negative == (False, True, False)
    prompt = added(added(prompt, box=(1, 1, 30, 30)), box=(2, 2, 20, 20))
    assert prompt.box == (2, 2, 20, 20)
    assert len(prompt.points) == 3


def test_each_answer_starts_from_the_logits_of_the_last_one(tiny_model: SamClip):
    features = tiny_model.encode(png())
    session = tiny_model.clicks(features)
    first = session.click(20, 15)
    second = session.click(5, 5, negative=True)
    prompt = Prompt(((20, 15), (5, 5)), (False, True), mask_input_hw=first.logits_Mhw[0])
    (expected,) = tiny_model.segment(features, [prompt], multimask=False)
    np.testing.assert_array_equal(second.masks_MHW, expected.masks_MHW)
    boxed = session.draw((5, 5, 30, 25))
    prompt = added(prompt, box=(5, 5, 30, 25))
    (without,) = tiny_model.segment(features, [prompt], multimask=False)
    assert not np.array_equal(boxed.logits_Mhw, without.logits_Mhw)  # it starts from the second


def test_a_restart_forgets_the_clicks(tiny_model: SamClip):
    session = tiny_model.clicks(png())
    first = session.click(20, 15)
    session.click(5, 5)
    session.restart()
    np.testing.assert_array_equal(session.click(20, 15).masks_MHW, first.masks_MHW)


def test_an_invalid_click_changes_nothing(tiny_model: SamClip):
    clicked, other = tiny_model.clicks(png()), tiny_model.clicks(png())
    for session in (clicked, other):
        session.click(20, 15)
    with pytest.raises(InvalidPrompt):
        clicked.click(-1, 5)
    np.testing.assert_array_equal(clicked.click(30, 20).masks_MHW, other.click(30, 20).masks_MHW)
