"""Drawings are in the right place."""

import io

import numpy as np
import pytest
from PIL import Image
from samclip import HeatMap, Mask, Masks, Panoptic, Region, Segment, SemanticMap, drawing

GREY_HW3 = np.full((40, 60, 3), 100, np.uint8)


def mask(y0: int, y1: int, x0: int, x1: int) -> Mask:
    array_HW = np.zeros((40, 60), bool)
    array_HW[y0:y1, x0:x1] = True
    return Mask(array_HW, (x0, y0, x1, y1), int(array_HW.sum()), 0.9, 0.9)


def test_masks_are_tinted_inside_outlined_and_nowhere_else() -> None:
    drawn_HW3 = np.asarray(Masks([mask(10, 30, 10, 40)]).draw(GREY_HW3))
    inside_HW = mask(10, 30, 10, 40).array
    assert (drawn_HW3[~inside_HW] == 100).all()
    assert (drawn_HW3[10, 10:40] == drawing.colour(0)).all()
    assert (drawn_HW3[20, 25] == 50 + np.array(drawing.colour(0)) // 2).all()
    assert (GREY_HW3 == 100).all()


def test_the_smallest_mask_lies_on_top_in_the_colour_of_its_place() -> None:
    small, large = mask(0, 20, 0, 20), mask(0, 40, 0, 60)
    for masks in (Masks([small, large]), Masks([large, small])):
        drawn_HW3 = np.asarray(masks.draw(GREY_HW3))
        assert (drawn_HW3[0, 0] == drawing.colour(masks.index(small))).all()
        assert (drawn_HW3[39, 59] == drawing.colour(masks.index(large))).all()


@pytest.mark.parametrize(("height", "width"), [(12, 30), (2600, 8)])
def test_small_and_thin_things_of_a_large_picture_are_drawn(height: int, width: int) -> None:
    array_HW = np.zeros((3000, 4000), bool)
    array_HW[100 : 100 + height, 100 : 100 + width] = True
    found = Mask(array_HW, (100, 100, 100 + width, 100 + height), height * width, 0.9, 0.9)
    drawn_HW3 = np.asarray(Masks([found]).draw(np.zeros((3000, 4000, 3), np.uint8)))
    assert (drawn_HW3.any(axis=2) == array_HW).all()


def test_wholes_are_no_parts_and_no_crumbs() -> None:
    whole, part, beside, crumb = (
        mask(0, 40, 0, 30),
        mask(9, 30, 9, 30),
        mask(0, 40, 25, 60),
        mask(2, 4, 58, 60),
    )
    assert [*Masks([part, whole, beside, crumb]).wholes] == [whole, beside]
    assert [*Masks([part]).wholes] == [part]
    assert not Masks().wholes


def test_a_mask_at_the_border_is_outlined_there() -> None:
    drawn_HW3 = np.asarray(Masks([mask(0, 40, 0, 60)]).draw(GREY_HW3))
    assert (drawn_HW3[0] == drawing.colour(0)).all()
    assert (drawn_HW3[:, 59] == drawing.colour(0)).all()


def test_a_map_has_a_legend_beneath() -> None:
    label_map_HW = np.full((40, 60), -1, np.int32)
    label_map_HW[:, :30] = 1
    region = Region("sea", 0.9, 1200, mask(0, 40, 0, 30))
    drawn = SemanticMap(label_map_HW, ("sky", "sea"), [region]).draw(GREY_HW3)
    drawn_HW3 = np.asarray(drawn)
    assert drawn_HW3.shape[0] > 40
    assert (drawn_HW3[:40, 31:] == 100).all()
    assert (drawn_HW3[:40, 0] == drawing.colour(1)).all()
    assert (drawn_HW3[40:] == drawing.colour(1)).all(axis=2).any()


def test_heat_is_bright_where_it_is_high_and_the_range_is_beneath() -> None:
    levels_HW = np.zeros((40, 60), np.uint8)
    levels_HW[:, 30:] = 255
    drawn_HW3 = np.asarray(HeatMap("sea", levels_HW, 0.1, 0.2).draw(GREY_HW3))
    low_3, high_3 = (50 + drawing.HEAT_256_3[level] // 2 for level in (0, 255))
    assert (drawn_HW3[:40, :30] == low_3).all()
    assert (drawn_HW3[:40, 30:] == high_3).all()
    assert (drawn_HW3[40:] == drawing.HEAT_256_3[255]).all(axis=2).any()


def test_every_answer_fits_a_photograph_that_is_shown_small() -> None:
    height, width = 2 * drawing.SHOWN_PIXELS + 1, 3
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    map_HW = np.zeros((height, width), np.int32)
    answers = (
        Masks([Mask(map_HW == 0, (0, 0, width, height), map_HW.size, 1, 1)]),
        SemanticMap(map_HW, ("sea",), [Region("sea", 1, map_HW.size, mask(0, 1, 0, 1))]),
        HeatMap("sea", map_HW.astype(np.uint8), 0, 1),
        Panoptic(b"", map_HW, [Segment(0, 0, map_HW.size, (0, 0, width, height))]),
    )
    for answer in answers:
        assert drawing.shown(file.getvalue(), answer.draw).height == drawing.SHOWN_PIXELS


def test_neighbouring_colours_differ() -> None:
    colours = np.array([drawing.colour(index) for index in range(40)])
    assert (np.abs(np.diff(colours, axis=0)).sum(axis=1) > 100).all()
    assert len({tuple(colour) for colour in colours}) == 40


def test_sheets() -> None:
    wide, high = Image.new("RGB", (100, 50), "red"), Image.new("RGB", (50, 100), "blue")
    sheet = drawing.contact_sheet([wide, high, wide], columns=2, width=20)
    assert sheet.size == (40, 50)
    assert sheet.getpixel((5, 5)) == (255, 0, 0)
    assert sheet.getpixel((25, 35)) == (0, 0, 255)
    assert sheet.getpixel((5, 45)) == (255, 0, 0)
    titled = drawing.with_title(wide, "a title")
    assert titled.height > 50
    assert titled.getpixel((0, titled.height - 1)) == (255, 0, 0)
