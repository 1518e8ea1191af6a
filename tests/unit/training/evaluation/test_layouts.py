from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.coco_set import write
from tests.photographs import draw, jpg, png
from training.evaluation import layouts

PICTURE = jpg(draw(0, 8, 10).image_HW3)
MAP_HW = np.arange(6, dtype=np.uint8).reshape(2, 3)


def write_palette(path: Path, labels_HW: np.ndarray) -> None:
    """Write an indexed PNG with a palette, as in VOC."""
    image = Image.fromarray(labels_HW).convert("P")
    image.putpalette([(7 * i) % 256 for i in range(768)])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def test_cocos_own_captions(tmp_path: Path):
    content = {
        "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 8, "file_name": "8.jpg"}],
        "annotations": [{"image_id": 7, "caption": text} for text in ("A dog.", "Two dogs.")],
    }
    write(tmp_path / "annotations/captions_val2017.json", content)
    picture = write(tmp_path / "val2017/7.jpg", PICTURE)
    assert layouts.captioned(tmp_path) == [(picture, ["A dog.", "Two dogs."])]


def only(data: layouts.LabelledSet) -> np.ndarray:
    """Return the label map of a set's only picture."""
    (picture,) = data.pictures
    assert picture.read() == PICTURE
    return picture.labels()


def test_voc(tmp_path: Path):
    for stem in ("2007_000033", "2007_000042"):
        write(tmp_path / f"JPEGImages/{stem}.jpg", PICTURE)
    write_palette(
        tmp_path / "SegmentationClass/2007_000033.png", np.where(MAP_HW == 5, 255, MAP_HW)
    )
    write(tmp_path / "ImageSets/Segmentation/val.txt", "2007_000033\n")
    data = layouts.voc(tmp_path)
    assert only(data).tolist() == [[0, 1, 2], [3, 4, 255]]
    assert (data.classes[1], data.classes[11], data.classes[20]) == (
        "aeroplane",
        "dining table",
        "tv monitor",
    )
    assert (len(data.classes), data.background, len(data.prompts)) == (20, 0, 60)


@pytest.mark.parametrize(
    "head", ["Idx\tRatio\tTrain\tVal\tName", "Idx\tRatio\tTrain\tVal\tS\tName"]
)
def test_ade20k(tmp_path: Path, head: str):
    blank = "\t".join(["0"] * (head.count("\t") - 1))
    rows = [head, f"1\t{blank}\twall", f"2\t{blank}\tbuilding, edifice"]
    write(tmp_path / "objectInfo150.txt", "\n".join(rows) + "\n")
    write(tmp_path / "images/validation/ADE_val_1.jpg", PICTURE)
    write(tmp_path / "annotations/validation/ADE_val_1.png", png(MAP_HW))
    data = layouts.ade20k(tmp_path)
    assert only(data).tolist() == MAP_HW.tolist()
    assert (data.classes, data.background) == ({1: "wall", 2: "building"}, None)


def test_coco_panoptic(tmp_path: Path):
    """Ids above one byte, the void id 0, and an id without a segment are read correctly."""
    ids_HW = np.array([[0, 1, 300], [70000, 300, 5]])
    rgb_HW3 = np.stack([ids_HW % 256, ids_HW // 256 % 256, ids_HW // 65536], axis=-1)
    write(tmp_path / "val2017/1.jpg", PICTURE)
    write(tmp_path / "annotations/panoptic_val2017/1.png", png(rgb_HW3.astype(np.uint8)))
    segments = [{"id": i, "category_id": c} for i, c in ((1, 18), (300, 200), (70000, 1))]
    content = {
        "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": segments}],
        "categories": [{"id": 1, "name": "person"}, {"id": 200, "name": "rug-merged"}],
    }
    write(tmp_path / "annotations/panoptic_val2017.json", content)
    data = layouts.coco_panoptic(tmp_path)
    assert only(data).tolist() == [[0, 18, 200], [1, 200, 0]]
    assert data.classes == {1: "person", 200: "rug-merged"}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name in ("n02", "n01"):
        for picture in ("b.JPEG", "a.JPEG", "notes.txt"):
            write(tmp_path / f"val/n000000{name[1:]}" / picture, PICTURE)
    return tmp_path / "val"


def test_class_names_stand_beside_the_folders(folders: Path):
    given = {"n00000001": "great_white shark", "n00000002": "tench"}
    write(folders.parent / "classes.json", given)
    pictures, names = layouts.class_folders(folders)
    assert names == ["great white shark", "tench"]
    stems = [(path.parent.name, path.name, index) for path, index in pictures]
    assert stems == [
        (f"n0000000{index + 1}", name, index) for index in (0, 1) for name in ("a.JPEG", "b.JPEG")
    ]


def test_a_folder_without_a_name_is_said(folders: Path):
    with pytest.raises(FileNotFoundError, match=r"put classes\.json there"):
        layouts.class_folders(folders)
    write(folders / "classes.json", '{"n00000001": "shark"}')
    with pytest.raises(ValueError, match="no name for the folder n00000002"):
        layouts.class_folders(folders)
    with pytest.raises(FileNotFoundError, match="no subfolders"):
        layouts.class_folders(folders / "n00000001")


def test_imagenet_v2_counts_its_folders(tmp_path: Path):
    for index in range(1000):
        (tmp_path / str(index)).mkdir()
    write(tmp_path / "2/x.jpeg", PICTURE)
    write(tmp_path / "10/y.jpeg", PICTURE)
    pictures, names = layouts.class_folders(tmp_path)
    assert [index for _, index in pictures] == [2, 10]
    assert (names[2], len(names)) == ("great white shark", 1000)


def test_other_folders_are_their_own_names(tmp_path: Path):
    write(tmp_path / "bus_station-indoor/1.png", PICTURE)
    assert layouts.class_folders(tmp_path).names == ["bus station indoor"]


@pytest.mark.parametrize("keys", [("n01440764", "n01443537"), tuple(layouts.V2_FOLDERS)])
def test_a_folder_that_is_no_class_changes_no_names(tmp_path: Path, keys: tuple[str, ...]):
    for key in keys:
        (tmp_path / key).mkdir()
    names = layouts.class_folders(tmp_path).names
    (tmp_path / ".ipynb_checkpoints").mkdir()
    assert layouts.class_folders(tmp_path).names == names
    (tmp_path / "lost+found").mkdir()
    with pytest.raises(ValueError, match=r"folders named like .*, and 'lost\+found'.*Remove"):
        layouts.class_folders(tmp_path)
    write(tmp_path / "classes.json", dict.fromkeys((*keys, "lost+found"), "fish"))
    assert layouts.class_folders(tmp_path).names == ["fish"] * (len(keys) + 1)


def test_imagenets_folders_have_the_names_that_clip_is_evaluated_with(tmp_path: Path):
    """WordNet's names, which come with the data set, are "crane" twice, and "maillot" twice."""
    for wnid in ("n02012849", "n03126707", "n01440764"):
        write(tmp_path / f"val/{wnid}/1.JPEG", PICTURE)
    pictures, names = layouts.class_folders(tmp_path / "val")
    assert names == ["tench", "crane bird", "construction crane"]
    assert [index for _, index in pictures] == [0, 1, 2]
    own = {"n01440764": "a fish", "n02012849": "a bird", "n03126707": "a machine"}
    write(tmp_path / "classes.json", own)  # it comes first
    assert layouts.class_folders(tmp_path / "val").names == list(own.values())
