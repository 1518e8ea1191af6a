"""The forms of the output."""

import csv
import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import yaml
from hypothesis import given
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools.coco import COCO
from samclip import cli
from samclip.cli import answers, data_sets, formats
from samclip.mask_codecs import decode_polygons, encode_polygons
from samclip.photo import Photo
from samclip.types import Model

from tests.unit.client.cli.conftest import Run
from tests.unit.client.conftest import Captured, Server


def test_the_table(run: Run, photo: str) -> None:
    ran = run("classify", photo, "--labels", "cat", "horse")
    assert ran.status == 0
    head, horse, cat = ran.out.splitlines()
    assert head.split() == ["image", "label", "score", "similarity"]
    assert horse.split() == [photo, "horse", "0.625", "0.050"]
    assert cat.index("cat") == head.index("label")
    assert len(head) == len(horse) == len(cat)


@pytest.mark.parametrize(("answers", "shown"), [(0, ""), (1, "nothing found\n")])
def test_a_table_without_rows(answers: int, shown: str, capsys: Captured) -> None:
    table = formats.Table()
    for _ in range(answers):
        table.add(formats.Answer([]))
    table.fail({"image": "torn.jpg", "error": "torn"})
    table.close(None)
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize(
    ("uncalibrated", "score", "noted"), [(True, 0.5, True), (True, 0.0, False), (False, 0.5, False)]
)
def test_a_table_says_that_the_scores_of_texts_are_uncalibrated(
    uncalibrated: bool, score: float, noted: bool, capsys: Captured
) -> None:
    table = formats.Table()
    table.add(formats.Answer([{"label_score": score}]))
    table.close(Model("pair", "d", "pair", uncalibrated=uncalibrated))
    assert ("uncalibrated" in capsys.readouterr().err) is noted


def test_cells() -> None:
    rows = [{"vector": [0.5] * 9, "metadata": {"a": "b"}, "box": [1.0, 2.5]}]
    line = formats.table(rows).splitlines()[1]
    assert line.split() == ["[0.500,", "0.500,", "0.500,", "…", "9]", "a=b", "[1,", "2.500]"]
    assert formats.table([]) == "nothing found"


@pytest.fixture
def two(photo: str) -> list[str]:
    """Return the paths of a photograph, a broken file and another photograph."""
    paths = [photo, *(str(Path(photo).with_name(name)) for name in ("broken.jpg", "wide.png"))]
    Path(paths[1]).write_bytes(b"broken")
    Image.new("L", (40, 10), 7).save(paths[2])
    return paths


def printed(run: Run, *argv: str) -> str:
    """Run a command that passes over one broken file; return its output."""
    ran = run(*argv)
    assert ran.status == 1
    assert "broken.jpg: not an image" in ran.err
    return ran.out


BOXES = ("--box", "3", "4", "10", "9", "--box", "0", "0", "2", "2")


def test_json_lines_have_the_masks_and_the_failures(run: Run, two: list[str]) -> None:
    out = printed(run, "segment", *two, *BOXES, "--format", "jsonl")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["image"], "error" in row) for row in rows] == [
        *[(two[0], False)] * 2, (two[1], True), *[(two[2], False)] * 2
    ]  # fmt: skip
    mask_HW = pycocotools.mask.decode(rows[0]["segmentation"])
    assert mask_HW.shape == (20, 30)
    assert mask_HW[4:9, 3:10].all()
    assert mask_HW.sum() == rows[0]["area"] == 35
    out = printed(run, "segment", *two, *BOXES, "--json")
    results = json.loads(out)["results"]
    assert results.pop(2)["error"] == "not an image"
    assert results == [row for row in rows if "error" not in row]


def test_json_lines_come_before_the_last_answer(
    server: Server, two: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Print the first answer while the second image waits."""
    asked: list[Any] = []
    shown: list[str] = []
    printed, classify = threading.Event(), Photo.classify

    def held(*given: Any, **options: Any) -> Any:
        asked.append(given)
        assert len(asked) == 1 or printed.wait(20)
        return classify(*given, **options)

    def note(text: str, **_: Any) -> None:
        shown.append(json.loads(text)["image"])
        printed.set()

    monkeypatch.setattr(answers, "AT_ONCE", 1)
    monkeypatch.setattr(Photo, "classify", held)
    monkeypatch.setattr(formats, "print", note, raising=False)
    argv = ["classify", two[0], two[2], "--labels", "x", "--format", "jsonl"]
    assert cli.main([*argv, "--server", server[1]]) == 0
    assert shown == [two[0], two[2]]


@pytest.mark.parametrize(
    ("texts", "said"), [(["ничего"], True), (["ничего", "cat"], False), (["nothing"], False)]
)
def test_another_language_is_named_only_where_nothing_is_found(
    run: Run, two: list[str], texts: list[str], said: bool
) -> None:
    ran = run("segment", two[0], *(f"--text={text}" for text in texts))
    assert ("nothing was found for 'ничего': the model has learned only English" in ran.err) is said


def test_csv_has_a_line_per_label(run: Run, two: list[str]) -> None:
    words = ("classify", *two, "--labels", "cat", "a, b", "--box", "1", "2", "3", "4")
    rows = list(csv.DictReader(io.StringIO(printed(run, *words, "--format", "csv"))))
    assert [(row["image"], row["label"]) for row in rows] == [
        (path, label) for path in (two[0], two[2]) for label in ("a, b", "cat")
    ]
    assert json.loads(rows[0]["box"]) == [1, 2, 3, 4]


MASK = "image,mask,label,label_score,predicted_iou,stability_score,area,box,thing"
SCORE = "label,score,similarity"


@pytest.mark.parametrize(
    ("argv", "header"),
    [
        ("classify PHOTO --labels a b", f"image,{SCORE}"),
        ("classify PHOTO --labels a b --box 1 2 3 4", f"image,box,{SCORE}"),
        ("segment PHOTO --box 1 2 3 4", MASK),
        ("everything PHOTO", MASK),
        ("everything PHOTO --panoptic", "image,id,category_id,area,bbox,label"),
        ("semantic PHOTO --labels a b", "image,label,score,area,share,box"),
        ("explain PHOTO --label a", "image,label,low,high,highest_at"),
        ("embed PHOTO --text a", "of,vector"),
        ("index greys PHOTO", "collection,indexed,replaced,failed"),
        ("search greys --text a", "id,score,metadata"),
        ("search greys --text a --where a=b", "id,score,metadata"),
        ("search greys --text a --objects", "id,score,box,metadata"),
        ("describe", "name,count,dimension,model_digest,dtype,graphs,objects,version"),
        ("concept list", "name,examples,model_digest"),
    ],
)
def test_csv_has_its_header_with_and_without_rows(
    run: Run, photo: str, argv: str, header: str
) -> None:
    words = [photo if word == "PHOTO" else word for word in argv.split()]
    if argv in ("describe", "concept list"):
        assert run(*words, "--format", "csv").out == f"{header}\n"
    run("index", "greys", photo, "--objects")
    run("concept", "add", "mug", photo, "--box", "1", "2", "3", "4")
    shown = run(*words, "--format", "csv").out.splitlines()
    assert shown[0] == header
    assert (len(shown) > 1) == ("--where" not in argv)


def test_csv_has_a_line_for_an_image_without_a_mask(run: Run, two: list[str]) -> None:
    out = printed(run, "segment", *two, "--text", "nothing", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row.pop("image") for row in rows] == [two[0], two[2]]
    assert all(set(row.values()) == {""} for row in rows)
    broken = printed(run, "segment", two[1], "--text", "a cat", "--format", "csv")
    assert broken == f"{MASK}\n"


@pytest.mark.parametrize(("labels", "warned"), [("cat,cat", True), ("cat", True), ("a,b", False)])
def test_a_label_without_others_is_answered_with_a_warning(
    run: Run, photo: str, labels: str, warned: bool
) -> None:
    ran = run("classify", photo, "--labels", labels, "--json")
    assert ran.status == 0
    assert ("a single label always has a score of 1" in ran.err) == warned


def test_coco_is_read_by_pycocotools(run: Run, two: list[str], tmp_path: Path) -> None:
    words = ("everything", *two, "--labels", "cat", "dog", "bird", "--format", "coco")
    file = tmp_path / "coco.json"
    file.write_text(printed(run, *words))
    data = COCO(str(file))
    assert {image["file_name"] for image in data.loadImgs(data.getImgIds())} == {
        "grey.png", "wide.png"
    }  # fmt: skip
    assert [c["name"] for c in data.loadCats(data.getCatIds())] == ["cat", "dog", "bird"]
    (wide,) = (one for one in data.loadImgs(data.getImgIds()) if one["file_name"] == "wide.png")
    first, second = data.loadAnns(data.getAnnIds(imgIds=wide["id"]))
    assert data.annToMask(first).sum() == first["area"] == 200
    assert second["bbox"] == [20, 0, 20, 10]
    assert second["category_id"] == data.getCatIds(catNms=["dog"])[0]


def test_yolo_writes_the_folders_that_its_programs_read(
    run: Run, two: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "cats"
    words = ("semantic", *two, "--labels", "sky", "a: sea", "--format", "yolo", "--out", str(out))
    files = printed(run, *words).splitlines()
    assert files == [str(out / name) for name in (
        "data.yaml", "images/grey.png", "labels/grey.txt", "images/wide.png", "labels/wide.txt"
    )]  # fmt: skip
    content = yaml.safe_load((out / "data.yaml").read_text())
    assert content == {"train": "images", "val": "images", "names": {0: "sky", 1: "a: sea"}}
    assert (out / "images/wide.png").read_bytes() == Path(two[2]).read_bytes()
    lines = [line.split() for line in (out / "labels/wide.txt").read_text().splitlines()]
    assert [line[0] for line in lines] == ["0", "1"]
    outline_K2 = np.array(lines[1][1:], float).reshape(-1, 2)
    assert outline_K2.min(axis=0).tolist() == [0.5, 0]
    assert outline_K2.max(axis=0).tolist() == [1, 1]


def test_an_interrupted_run_leaves_a_data_set_that_yolo_reads(
    run: Run, photo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names that are not asked for, as those of a vocabulary, are added as they are found."""
    out, write = tmp_path / "out", Path.write_bytes
    seen: list[tuple[str, Any]] = []

    def note(path: Path, content: bytes) -> int:
        described = out / "data.yaml"
        known = yaml.safe_load(described.read_text())["names"] if described.exists() else None
        seen.append((path.parent.name, known))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", note)
    argv = ("everything", photo, "--vocabulary", "coco", "--format", "yolo", "--out", str(out))
    ran = run(*argv)
    names = yaml.safe_load((out / "data.yaml").read_text())["names"]
    assert seen == [("out", None), ("images", names), ("labels", names)]
    assert names == {0: "a word of coco"}
    assert [Path(line).name for line in ran.out.splitlines()] == [
        "data.yaml", "grey.png", "grey.txt"
    ]  # fmt: skip


def test_yolo_finds_the_labels_of_images_in_folders_of_that_name(
    run: Run, photo: str, tmp_path: Path
) -> None:
    inner = tmp_path / "set/images/grey.png"
    inner.parent.mkdir(parents=True)
    inner.write_bytes(Path(photo).read_bytes())
    argv = ["segment", str(tmp_path / "set"), "--box", "1", "1", "5", "5", "--format", "yolo"]
    assert run(*argv, "--out", str(tmp_path / "out")).status == 0
    (image,) = map(str, (tmp_path / "out").rglob("*.png"))
    expected = "/labels/".join(image.rsplit("/images/", 1)).removesuffix(".png") + ".txt"
    assert Path(expected).is_file()


@given(arrays(bool, (7, 9)))
def test_one_outline_of_several_rings_covers_the_same_pixels(mask_HW: np.ndarray) -> None:
    rings = encode_polygons(mask_HW) if mask_HW.any() else []
    if rings:
        joined = data_sets.joined(rings).reshape(-1).astype(np.float32)
        assert (decode_polygons([joined], 7, 9) == mask_HW).all()
