"""Folders are classes, with the names that CLIP is evaluated with or the user's own."""

from functools import partial
from pathlib import Path

import pytest

from tests.coco_set import write
from tests.photographs import draw, jpg
from training.evaluation import layouts
from training.evaluation.published_names import V2_FOLDERS

class_folders = partial(layouts.class_folders, "")

PICTURE = jpg(draw(0, 8, 10).image_HW3)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name in ("n02", "n01"):
        for picture in ("b.JPEG", "a.JPEG", "notes.txt"):
            write(tmp_path / f"val/n000000{name[1:]}" / picture, PICTURE)
    return tmp_path / "val"


def test_class_names_stand_beside_the_folders(folders: Path):
    given = {"n00000001": "great_white shark", "n00000002": "tench"}
    write(folders.parent / "classes.json", given)
    data = class_folders(folders)
    pictures, names = data.pictures, data.names
    assert names == ["great white shark", "tench"]
    stems = [(path.parent.name, path.name, index) for path, index in pictures]
    assert stems == [
        (f"n0000000{index + 1}", name, index) for index in (0, 1) for name in ("a.JPEG", "b.JPEG")
    ]


def test_a_folder_without_a_name_is_said(folders: Path):
    with pytest.raises(FileNotFoundError, match=r"put classes\.json there"):
        class_folders(folders)
    write(folders / "classes.json", '{"n00000001": "shark"}')
    with pytest.raises(ValueError, match="no name for the folder n00000002"):
        class_folders(folders)
    with pytest.raises(FileNotFoundError, match="no subfolders"):
        class_folders(folders / "n00000001")


def test_imagenet_v2_counts_its_folders(tmp_path: Path):
    for index in range(1000):
        (tmp_path / str(index)).mkdir()
    write(tmp_path / "2/x.jpeg", PICTURE)
    write(tmp_path / "10/y.jpeg", PICTURE)
    data = class_folders(tmp_path)
    pictures, names = data.pictures, data.names
    assert [index for _, index in pictures] == [2, 10]
    assert (names[2], len(names)) == ("great white shark", 1000)


def test_other_folders_are_their_own_names(tmp_path: Path):
    write(tmp_path / "bus_station-indoor/1.png", PICTURE)
    assert class_folders(tmp_path).names == ["bus station indoor"]


@pytest.mark.parametrize("keys", [("n01440764", "n01443537"), tuple(V2_FOLDERS)])
def test_a_folder_that_is_no_class_changes_no_names(tmp_path: Path, keys: tuple[str, ...]):
    for key in keys:
        (tmp_path / key).mkdir()
    names = class_folders(tmp_path).names
    (tmp_path / ".ipynb_checkpoints").mkdir()
    assert class_folders(tmp_path).names == names
    (tmp_path / "lost+found").mkdir()
    with pytest.raises(ValueError, match=r"folders named like .*, and 'lost\+found'.*Remove"):
        class_folders(tmp_path)
    write(tmp_path / "classes.json", dict.fromkeys((*keys, "lost+found"), "fish"))
    assert class_folders(tmp_path).names == ["fish"] * (len(keys) + 1)


def test_imagenets_folders_have_the_names_that_clip_is_evaluated_with(tmp_path: Path):
    """WordNet's names, which come with the data set, are "crane" twice, and "maillot" twice."""
    for wnid in ("n02012849", "n03126707", "n01440764"):
        write(tmp_path / f"val/{wnid}/1.JPEG", PICTURE)
    data = class_folders(tmp_path / "val")
    pictures, names = data.pictures, data.names
    assert names == ["tench", "crane bird", "construction crane"]
    assert [index for _, index in pictures] == [0, 1, 2]
    own = {"n01440764": "a fish", "n02012849": "a bird", "n03126707": "a machine"}
    write(tmp_path / "classes.json", own)  # it comes first
    assert class_folders(tmp_path / "val").names == list(own.values())
