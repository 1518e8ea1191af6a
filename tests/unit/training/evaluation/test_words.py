"""Names of things, asked for as text prompts, are found, fitted, or refused where absent."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from samclip_core.answers.things import numbered
from samclip_core.geometry import Geometry
from samclip_core.types import EverythingMask
from training.evaluation import words

NAMES = ["cup", "dog", "cat", "car", "tie", "bed"]
SQUARE = Geometry(64, 64, 64)


def rle(x: int) -> dict:
    """Return the outline of a column of 16 pixels from ``x``."""
    mask_HW = np.zeros((64, 64), np.uint8)
    mask_HW[:, x : x + 16] = 1
    return coco_mask.encode(np.asfortranarray(mask_HW))


def sample(key: str = "a") -> SimpleNamespace:
    """Return a photograph with two cups, a dog and a crowd of cars."""
    instances = [
        {"category": category, "segmentation": rle(x), "iscrowd": crowd}
        for category, x, crowd in (("cup", 0, 0), ("cup", 16, 0), ("dog", 32, 0), ("car", 48, 1))
    ]
    return SimpleNamespace(key=key, encoded=b"", info={"instances": instances})


class Finder:
    """A model that finds the given columns of each name."""

    def __init__(self, columns: dict[str, list[slice]]) -> None:
        self.columns = columns

    def find(self, _: Geometry, names: list[str]) -> list[list[EverythingMask]]:
        (name,) = names
        masks = []
        for column in self.columns.get(name, []):
            logits_hw = np.full((64, 64), -1, np.float32)
            logits_hw[:, column] = 1
            masks.append(EverythingMask(SQUARE, logits_hw, 0.9, 0.9, name, 0.8))
        return [numbered(masks)]


def test_a_thing_or_all_of_its_name_fit_but_not_a_crowd() -> None:
    found = words.truths(sample())
    assert sorted(found) == ["cup", "dog"]
    assert [int(mask.sum()) for mask in found["cup"]] == [16 * 64, 16 * 64, 32 * 64]


@pytest.mark.parametrize(
    ("columns", "found", "fitted", "masks"),
    [
        ({}, 0, 0, 0),
        ({"cup": [slice(0, 16)], "dog": [slice(0, 16)]}, 2, 1, 2),
        ({"cup": [slice(40, 60), slice(0, 32)]}, 1, 1, 2),
        ({"cup": [slice(0, 7), slice(0, 16)]}, 1, 0, 1),  # the fitting one is another size
        ({name: [slice(0, 16)] for name in NAMES}, 2, 1, 2),
    ],
)
def test_present_names_are_found_and_fitted_and_absent_ones_refused(
    columns: dict, found: int, fitted: int, masks: int
) -> None:
    counts = words.measure(words.truths, NAMES, Finder(columns), sample(), SQUARE)
    refused = 0 if len(columns) == len(NAMES) else 3
    assert counts == words.Counts(2, found, fitted, 3, refused, 2, fitted, masks, fitted)


def test_absent_names_depend_on_the_photograph_alone_and_are_not_there() -> None:
    photographs = [sample(str(key)) for key in range(20)]
    first, drawn = (
        [words.absent_names(one, words.truths(one), NAMES) for one in photographs] for _ in range(2)
    )
    assert drawn == first
    assert all(len(set(names)) == 3 and set(names) <= {"cat", "tie", "bed"} for names in drawn)


def test_new_names_share_no_word_with_those_that_taught_or_rival(tmp_path: Path) -> None:
    sets = {
        words.SOURCE: ["cup", "tree-merged"],
        "imagenet1k_sample": ["lab coat", "sock"],
        words.CLOTHES: ["null", "coats", "socks", "scarf", "tree", "sky", "skirt"],
    }
    for name, classes in sets.items():
        (tmp_path / name).mkdir()
        content = {"classes": [{"id": n, "name": one} for n, one in enumerate(classes)]}
        (tmp_path / name / "classes.json").write_text(json.dumps(content))
    assert words.new_names(tmp_path) == {3: "scarf", 6: "skirt"}


def test_pieces_of_a_class_and_all_of_it_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    labels_HW = np.zeros((8, 8), np.uint8)
    labels_HW[:, :2], labels_HW[:, 6:], labels_HW[:, 4] = 3, 3, 5
    monkeypatch.setattr(words, "label_map", lambda sample: labels_HW)
    found = words.areas({3: "scarf", 6: "skirt"}, sample())
    assert {name: [int(mask.sum()) for mask in masks] for name, masks in found.items()} == {
        "scarf": [32, 16, 16]
    }


def test_a_name_is_large_if_a_thing_of_it_is() -> None:
    one = sample()
    small_HW = np.zeros((64, 64), np.uint8)
    small_HW[:8, :25] = 1  # 200 of 4,096 pixels
    one.info["instances"][2]["segmentation"] = coco_mask.encode(np.asfortranarray(small_HW))
    everywhere = {name: [slice(0, 16)] for name in NAMES}
    counts = words.measure(words.truths, NAMES, Finder(everywhere), one, SQUARE)
    assert (counts.large, counts.large_fitted) == (1, 1)
