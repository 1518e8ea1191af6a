import numpy as np
from matplotlib.figure import Figure

from training.claims.sheet import FADED, colours, draw_labels


def test_every_class_has_a_colour_of_its_own() -> None:
    palette_L3 = colours(131)
    assert palette_L3.min() >= 0
    assert palette_L3.max() <= 1
    assert len(np.unique(palette_L3.round(3), axis=0)) == 131


def test_the_largest_areas_are_named_and_no_label_is_dark() -> None:
    label_map_HW = np.array([[2, 2, 2, 0], [2, 0, -1, -1]])
    axes = Figure().add_subplot()
    draw_labels(axes, np.zeros((2, 4, 3), np.uint8), label_map_HW, ["a", "b", "c"])
    assert [text.get_text() for text in axes.texts] == ["c", "a"]
    shown_HW3 = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(shown_HW3[0, 0], (1 - FADED) * colours(3)[2])
    assert (shown_HW3[1, 2:] == 0).all()
