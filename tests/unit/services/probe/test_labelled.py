"""Labelled pictures are read from folders, a CSV and COCO's JSON; other forms are named."""

import json
from collections import Counter
from pathlib import Path

import pytest

from services.probe.labelled import check, read

COCO = {
    "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "empty.png"}],
    "categories": [{"id": 7, "name": "wheel"}],
    "annotations": [
        {"image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4]},
        {"image_id": 1, "category_id": 7, "bbox": [0, 0, 9, 9], "iscrowd": 1},
    ],
}


def outlined(more: dict[str, list[int]]) -> bytes:
    outline = {"id": 5, "image_id": 1, "category_id": 7, "segmentation": [[0, 0, 9, 0, 9, 9]]}
    return json.dumps(COCO | {"annotations": [outline | more]}).encode()


def test_a_folder_has_a_subfolder_per_class(tmp_path: Path) -> None:
    for name in ("cat/a.png", "cat/more/b.jpg", "dog/c.png", ".hidden/d.png", "e.png", "cat/f.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [(Path(one.source.name).name, *one.labels) for one in read(tmp_path)]
    assert found == [("a.png", "cat"), ("b.jpg", "cat"), ("c.png", "dog")]


@pytest.mark.parametrize("header", ["", "file,label\n", "\ufeffFile,Label\n"])
def test_a_csv_is_relative_to_its_folder(tmp_path: Path, header: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(f'{header}a.png,cat\n\nhttp://host/b.png, "dog, big"\n'.replace(', "', ',"'))
    first, second = read(path)
    assert (first.source.name, *first.labels) == (str(tmp_path / "a.png"), "cat")
    assert (second.source.name, *second.labels) == ("http://host/b.png", "dog, big")


def test_coco_has_boxes_without_crowds(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(COCO))
    (picture,) = read(path)
    assert picture.source.name == str(tmp_path / "a.png")
    assert list(zip(picture.labels, picture.boxes, strict=True)) == [("wheel", (1, 2, 4, 6))]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.csv", b"a.png\n", "line 1"),
        ("labels.csv", b"file,label\na.png,\n", "line 2"),
        ("labels.csv", b"\xff\xd8\xff\xe0", "UnicodeDecodeError"),
        ("labels.csv", b"", "no labelled pictures"),
        ("boxes.json", b"{", "JSONDecodeError"),
        ("boxes.json", b"[]", "TypeError"),
        ("boxes.json", json.dumps(COCO | {"categories": []}).encode(), "KeyError"),
        ("boxes.json", outlined({}), "annotation 5 has no bbox of four numbers"),
        ("boxes.json", outlined({"bbox": [1, 2, 3]}), "annotation 5 has no bbox of four numbers"),
    ],
)
def test_another_form_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("count", "message"),
    [
        ({"a": 5}, "1 classes: expected 2"),
        ({"a": 5, "b": 1, "c": 0}, "fewer than 2 different readable pictures of b, c"),
        ({"a": 5, "b\n": 5}, "no name of a class"),
        ({str(number): 2 for number in range(2000)}, "2000 classes"),
    ],
)
def test_classes_need_names_and_pictures(count: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(Counter(count))
    assert check(Counter(b=2, a=3)) == ["a", "b"]
