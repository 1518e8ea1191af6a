"""A rough mask becomes logits that show it again, a box, and nothing where it does not fit."""

import numpy as np
import pytest

from samclip_core.answers.rough import STRENGTH, RoughMask
from samclip_core.errors import InvalidRequest
from samclip_core.geometry import Geometry
from samclip_core.io.masks import decode_pixels, find_runs, mask_box
from samclip_core.model import SamClip
from samclip_core.types import Prompt


def ellipse(height: int, width: int) -> np.ndarray:
    """Return a mask right of and below the middle, up to the right edge of the picture."""
    y_H1, x_W = (np.arange(side) + 0.5 for side in (height, width))
    return (y_H1[:, None] / height - 0.6) ** 2 + (x_W / width - 0.8) ** 2 < 0.06


def marked(height: int, width: int, beside: Prompt | None = None) -> Prompt:
    geometry = Geometry(height, width, 128)
    prompt = RoughMask.of(ellipse(height, width), beside)
    prompt.validate(geometry)
    made = prompt.to_prompt(geometry, 64)
    made.validate(geometry)
    return made


SIZES = [(30, 40), (128, 128), (200, 50), (480, 640), (90, 1300)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_its_logits_show_the_mask_again(height: int, width: int) -> None:
    geometry, mask_HW = Geometry(height, width, 128), ellipse(height, width)
    np.testing.assert_array_equal(decode_pixels(find_runs(mask_HW)).T > 0, mask_HW)
    logits_ss = marked(height, width).mask_input_hw
    assert logits_ss.dtype == np.float32
    assert np.abs(logits_ss).max() == pytest.approx(STRENGTH, abs=0.01)
    (again_HW,) = geometry.masks_to_original(logits_ss[None])
    # A cell of the logits may have several pixels.
    assert (again_HW & mask_HW).sum() / (again_HW | mask_HW).sum() > 0.8
    assert logits_ss[geometry.grid(64)[0] :].max(initial=-STRENGTH) == -STRENGTH


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_its_box_and_its_middle_go_with_it_unless_there_are_others(height: int, width: int) -> None:
    made, mask_HW = marked(height, width), ellipse(height, width)
    x_min, y_min, x_max, y_max = mask_box(mask_HW)
    margin = 0.1 * (y_max - y_min)
    assert made.box[1:] == pytest.approx([y_min - margin, width, min(height, y_max + margin)])
    assert made.box[0] == pytest.approx(x_min - 0.1 * (x_max - x_min))
    ((x, y),) = made.points
    assert mask_HW[int(y), int(x)]
    others = Prompt(((width - 1.0, 1.0),), (True,), (width / 2, 0.0, float(width), float(height)))
    beside = marked(height, width, others)
    assert (beside.points, beside.negative, beside.box) == (others.points, (True,), others.box)


@pytest.mark.parametrize("scale", [1, 10])
def test_a_speck_is_a_cell(scale: int) -> None:
    height, width = 400 * scale, 500 * scale
    mask_HW = np.zeros((height, width), np.bool_)
    mask_HW[-1, -1] = True
    made = RoughMask.of(mask_HW).to_prompt(Geometry(height, width, 128), 64)
    assert np.abs(np.subtract(made.points[0], (width, height))).max() < 8 * scale
    assert (made.mask_input_hw > 0).sum() == 1


def test_the_middle_of_a_speck_lies_in_its_box() -> None:
    mask_HW = np.zeros((1, 40_000), bool)
    mask_HW[0, 5:9] = True
    prompt = RoughMask.of(mask_HW).to_prompt(Geometry(1, 40_000, 128), 64)
    ((x, _),) = prompt.points
    assert 5 <= x <= 9


def test_its_answer_is_that_of_its_prompt(tiny_model: SamClip) -> None:
    image_HW3 = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    features, rough = tiny_model.encode(image_HW3), RoughMask.of(ellipse(30, 40))
    plain = rough.to_prompt(features.geometry, tiny_model.config.logits_side)
    ours, theirs = tiny_model.segment(features, [rough, plain])
    np.testing.assert_allclose(ours.logits_Mhw, theirs.logits_Mhw, atol=1e-4)


PART_HW = ellipse(30, 40)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (RoughMask.of(PART_HW.T), "the mask has 30×40 pixels, the image 40×30"),
        (RoughMask.of(PART_HW & False), "the mask is empty"),
        (RoughMask.of(PART_HW | True), "the mask covers the whole image"),
        (RoughMask.of(PART_HW, Prompt(box=(0, 0, 5, 5))), "lies outside the box of the prompt"),
        (RoughMask.of(PART_HW, Prompt(box=(9, 9, 50, 20))), "extends beyond the image"),
        (RoughMask.of(PART_HW, Prompt(points=((50, 3),))), "lies outside the image"),
        (
            RoughMask.of(PART_HW, Prompt(mask_input_hw=np.zeros((64, 64), np.float32))),
            "a mask and a mask_input exclude each other",
        ),
    ],
)
def test_what_marks_no_object_is_refused(prompt: RoughMask, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        prompt.validate(Geometry(30, 40, 128))
