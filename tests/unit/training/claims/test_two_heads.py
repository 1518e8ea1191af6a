import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

from samclip_core.io.image import ImageLimits
from tests.photographs import draw, outlined, png, write_classes, write_shard
from training.claims import two_heads
from training.claims.two_heads import FADED, colours, draw_labels
from training.evaluation.layouts import LabelledSet, Mapped

TRUTHS = np.array(
    [
        [[1, 1], [2, 2]],  # two heads are right, one head is half right
        [[1, 2], [0, 0]],  # 0 is not a class; the second head makes one of two pixels wrong
        [[2, 2], [2, 2]],  # the second head changes nothing
    ],
    np.uint8,
)
ONE = np.array([[[0, 1], [0, 1]], [[0, 1], [0, 0]], [[1, 1], [1, 1]]])
TWO = np.array([[[0, 0], [1, 1]], [[1, 1], [1, 1]], [[1, 1], [1, 1]]])


class Scripted:
    """A model with scripted answers for the three pictures, which differ in brightness."""

    limits = ImageLimits()

    def encode(self, encoded: bytes) -> int:
        return [picture(place) for place in range(3)].index(encoded)

    def segment_text(self, place: int, labels: Sequence[str], refine: bool) -> SimpleNamespace:
        assert labels == ["sky", "wall-brick"]
        return SimpleNamespace(label_map_HW=(TWO if refine else ONE)[place])


def picture(place: int) -> bytes:
    return png(np.full((2, 2, 3), 50 * place, np.uint8))


def scripted(shown: int) -> two_heads.Comparison:
    pictures = [
        Mapped(partial(picture, place), partial(np.array, TRUTHS[place])) for place in range(3)
    ]
    data = LabelledSet("scripted", {1: "sky", 2: "wall-brick"}, pictures)
    return two_heads.compare(Scripted(), data, shown)


def test_both_procedures_are_counted_and_the_largest_changes_kept() -> None:
    found = scripted(shown=2)
    assert np.sum(found.one_N3C, axis=0).tolist() == [[2, 6], [3, 7], [3, 7]]
    assert np.sum(found.two_N3C, axis=0).tolist() == [[2, 7], [3, 7], [2, 8]]
    assert [changed.gain for changed in found.changed] == [0.5, -0.5]
    assert found.changed[1].maps_3HW.tolist() == [
        [[0, 1], [-1, -1]],
        ONE[1].tolist(),
        TWO[1].tolist(),
    ]
    assert (found.changed[1].image_HW3 == 50).all()


def test_the_table_has_the_classes_that_occur_largest_gain_first() -> None:
    head, *rows = two_heads.report("scripted", scripted(shown=0)).splitlines()
    assert head.startswith("scripted: mIoU 62.50% with one head, 77.08% with two: +14.58 points")
    assert "| scripted semantic two heads photographs | 3 |" in rows
    assert rows[-2:] == [
        "| sky | 30.0% | 50.0% | 66.7% | +16.7 |",
        "| wall-brick | 70.0% | 75.0% | 87.5% | +12.5 |",
    ]
    assert two_heads.draw(scripted(shown=0)) is None


def test_the_sheet_has_a_row_for_each_photograph() -> None:
    figure = two_heads.draw(scripted(shown=2))
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == [*two_heads.COLUMNS] * 2
    assert figure.axes[0].get_xlabel() == "+50.0 points of accuracy"


def test_the_command_writes_what_it_prints(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shard(tmp_path / "camvid/train-0.tar", {str(i): outlined(draw(i)) for i in range(2)})
    write_classes(tmp_path / "camvid", {1: "dog", 2: "cat", 3: "grass"})
    given = {"--checkpoint": tiny_checkpoint, "--root": tmp_path, "--set": "camvid"}
    given |= {"--split": "train", "--shown": 1, "--out": tmp_path / "out"}
    assert two_heads.main([str(word) for pair in given.items() for word in pair]) == 0
    name = "two_heads_camvid_train"
    found = json.loads((tmp_path / f"out/{name}.json").read_text())
    one, two = found["camvid_semantic_miou"], found["camvid_semantic_two_heads_miou"]
    assert f"mIoU {one:.2%} with one head, {two:.2%} with two" in capsys.readouterr().out
    assert (tmp_path / f"out/{name}.png").read_bytes().startswith(b"\x89PNG")


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
