from pathlib import Path

import numpy as np
import pytest

from training.data import drawn
from training.data.annotations import class_names, decoded, imagenet_names, label_map, regions
from training.data.sources import open_source


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    drawn.write_drawn_sets(root)
    return root


def test_every_photograph_has_one_of_each_shape(root: Path):
    source = open_source(str(root / "drawn"))
    names = class_names(root, "drawn")
    assert list(names.values()) == ["red circle", "green square", "blue triangle"]
    assert len(source) == len(drawn.PHOTOGRAPHS)
    for sample in (source[index] for index in range(len(source))):
        labels_HW = label_map(sample)
        assert set(np.unique(labels_HW)) == {*names, drawn.VOID}
        for index, outline_HW in zip(names, decoded(regions(sample)), strict=True):
            assert np.array_equal(outline_HW, labels_HW == index)
            assert 0.005 < outline_HW.mean() < 0.3


def test_a_second_writing_changes_nothing(root: Path, tmp_path: Path):
    drawn.write_drawn_sets(tmp_path)
    first, second = (open_source(str(folder / "drawn")).digest() for folder in (root, tmp_path))
    assert first == second
    for path in (root / "drawn").iterdir():
        assert path.read_bytes() == (tmp_path / "drawn" / path.name).read_bytes()


def test_the_names_are_those_that_clip_is_evaluated_with(root: Path):
    names = imagenet_names(root)
    assert (len(names), names[2]) == (1000, "great white shark")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(drawn, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install -e '\.\[train\]'"):
        drawn.write_drawn_sets(tmp_path)
