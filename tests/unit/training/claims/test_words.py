from types import SimpleNamespace

import numpy as np
import pytest

from samclip_core.geometry import Geometry
from samclip_core.io.image import ImageLimits
from samclip_core.types import EverythingMask
from tests.in_process import png
from tests.photographs import instance
from training.claims import words

NAMES = ["cup", "dog"]
COLUMNS = {"cup": slice(0, 16), "dog": slice(20, 40)}
HEIGHT, WIDTH = 30, 40  # of ``png``


class Finder:
    """A model that finds each thing exactly, with the names of ``swap``."""

    limits = ImageLimits()

    def __init__(self, swap: dict[str, str]) -> None:
        self.swap = swap

    def find(self, image: np.ndarray, names: list[str]) -> list[list[EverythingMask]]:
        assert image.shape == (HEIGHT, WIDTH, 3)
        found = []
        for name in names:
            logits_hw = np.full((WIDTH, WIDTH), -1, np.float32)
            logits_hw[:, COLUMNS[self.swap[name]]] = 1
            found.append([EverythingMask(Geometry(HEIGHT, WIDTH, WIDTH), logits_hw, 1, 1, name, 1)])
        return found


def sample() -> SimpleNamespace:
    instances = []
    for name, column in COLUMNS.items():
        mask_HW = np.zeros((HEIGHT, WIDTH), np.bool_)
        mask_HW[:, column] = True
        box = [column.start, 0, column.stop - column.start, HEIGHT]
        instances.append(instance(mask_HW, category=name, bbox=box, iscrowd=0))
    info = {"instances": instances, "height": HEIGHT, "width": WIDTH}
    return SimpleNamespace(encoded=png(), info=info)


@pytest.mark.parametrize(
    ("swap", "precision"),
    [({"cup": "cup", "dog": "dog"}, 1.0), ({"cup": "dog", "dog": "cup"}, 0.0)],
)
def test_names_count_only_where_they_belong(
    swap: dict[str, str], precision: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "PROCEDURES", {"names": words.by_names})
    figures = words.measure(Finder(swap), [sample()] * 3, NAMES)["names"]
    assert figures["ap"] == pytest.approx(precision, abs=1e-6)
    assert figures["seconds"] > 0
