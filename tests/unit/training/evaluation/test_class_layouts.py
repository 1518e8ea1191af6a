import json
from pathlib import Path

import pytest

from tests.photographs import draw, jpg
from training.evaluation import class_layouts

V2 = tuple(class_layouts.V2_FOLDERS)
PICTURE = jpg(draw(0, 8, 10).image_HW3)


def write(path: Path, content: bytes | str = PICTURE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name in ("n02", "n01"):
        for picture in ("b.JPEG", "a.JPEG", "notes.txt"):
            write(tmp_path / f"val/n000000{name[1:]}" / picture)
    return tmp_path / "val"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("classes.json", '{"n00000001": "great_white shark", "n00000002": "tench"}'),
        (
            "imagenet_class_index.json",
            '{"0": ["n00000001", "great_white_shark"], "1": ["n00000002", "tench"]}',
        ),
        ("LOC_synset_mapping.txt", "n00000001 great white shark, man-eater\nn00000002 tench"),
    ],
)
def test_class_names_stand_beside_the_folders(folders: Path, file: str, content: str):
    write(folders.parent / file, content)
    pictures, names = class_layouts.class_folders(folders)
    assert names == ["great white shark", "tench"]
    stems = [(path.parent.name, path.name, index) for path, index in pictures]
    assert stems == [
        (f"n0000000{index + 1}", name, index) for index in (0, 1) for name in ("a.JPEG", "b.JPEG")
    ]


def test_a_folder_without_a_name_is_said(folders: Path):
    with pytest.raises(FileNotFoundError, match=r"put one of classes\.json"):
        class_layouts.class_folders(folders)
    write(folders / "classes.json", '{"n00000001": "shark"}')
    with pytest.raises(ValueError, match="no name for the folder n00000002"):
        class_layouts.class_folders(folders)
    with pytest.raises(FileNotFoundError, match="no subfolders"):
        class_layouts.class_folders(folders / "n00000001")


def test_imagenet_v2_counts_its_folders(tmp_path: Path):
    for index in range(1000):
        (tmp_path / str(index)).mkdir()
    write(tmp_path / "2/x.jpeg")
    write(tmp_path / "10/y.jpeg")
    pictures, names = class_layouts.class_folders(tmp_path)
    assert [index for _, index in pictures] == [2, 10]
    assert (names[2], len(names)) == ("great white shark", 1000)


def test_other_folders_are_their_own_names(tmp_path: Path):
    write(tmp_path / "bus_station-indoor/1.png")
    assert class_layouts.class_folders(tmp_path).names == ["bus station indoor"]


@pytest.mark.parametrize("keys", [("n01440764", "n01443537"), V2])
def test_a_folder_that_is_no_class_changes_no_names(tmp_path: Path, keys: tuple[str, ...]):
    for key in keys:
        (tmp_path / key).mkdir()
    names = class_layouts.class_folders(tmp_path).names
    (tmp_path / ".ipynb_checkpoints").mkdir()
    assert class_layouts.class_folders(tmp_path).names == names
    (tmp_path / "lost+found").mkdir()
    with pytest.raises(ValueError, match=r"folders named like .*, and 'lost\+found'.*Remove"):
        class_layouts.class_folders(tmp_path)
    write(tmp_path / "classes.json", json.dumps(dict.fromkeys((*keys, "lost+found"), "fish")))
    assert class_layouts.class_folders(tmp_path).names == ["fish"] * (len(keys) + 1)


def imagenet(root: Path, wnids: tuple[str, ...]) -> Path:
    for wnid in wnids:
        write(root / f"val/{wnid}/1.JPEG")
    return root / "val"


@pytest.mark.parametrize("published", [None, *class_layouts.PUBLISHED_NAMES])
def test_imagenets_folders_have_the_names_that_clip_is_evaluated_with(
    tmp_path: Path, published: str | None
):
    """WordNet's names, which come with the data set, are "crane" twice, and "maillot" twice."""
    val = imagenet(tmp_path, ("n02012849", "n03126707", "n01440764"))
    if published:
        lines = "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane"
        rows = {"0": ["n01440764", "tench"], "1": ["n02012849", "crane"]}
        rows |= {"2": ["n03126707", "crane"]}
        write(tmp_path / published, json.dumps(rows) if published.endswith("json") else lines)
    pictures, names = class_layouts.class_folders(val)
    assert names == ["tench", "crane bird", "construction crane"]
    assert [index for _, index in pictures] == [0, 1, 2]


def test_names_of_ones_own_come_first(tmp_path: Path):
    val = imagenet(tmp_path, ("n01440764",))
    write(tmp_path / "classes.json", '{"n01440764": "a fish"}')
    assert class_layouts.class_folders(val).names == ["a fish"]
