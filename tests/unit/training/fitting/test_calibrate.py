import base64
import errno
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from samclip_core.io import checkpoint
from tests.photographs import COLOURS, draw, instance, jpg, png, sample, write_shard
from tests.tiny import WITHOUT_MASKS, make_tiny_checkpoint
from training.evaluation import outlines, words
from training.evaluation.suite import part_of
from training.fitting import calibrate, concepts, examples, searches

NAMES = {0: "void", 1: "dog", 2: "cat", 3: "photo", 4: "the", 5: "grass"}
"""The first three things are drawn on every photograph, the others on none."""


def photograph(seed: int, maps: bool) -> dict[str, bytes]:
    drawing = draw(seed)
    instances = [
        instance(drawing.labels_HW == label, category=NAMES[label], iscrowd=0) for label in COLOURS
    ]
    files = {"jpg": jpg(drawing.image_HW3), "json": json.dumps({"instances": instances}).encode()}
    return files | ({"png": png(drawing.labels_HW)} if maps else {})


def write_set(folder: Path, maps: bool = True, names: int = 5) -> Path:
    write_shard(folder / "val-00000.tar", {f"{i}": photograph(i, maps) for i in range(9)})
    classes = [{"id": i, "name": NAMES[i], "isthing": int(i > 0)} for i in range(names + 1)]
    (folder / "classes.json").write_text(json.dumps({"classes": classes, "ignore_ids": [0]}))
    return folder


@pytest.fixture
def directory(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny"))


def test_a_checkpoint_has_its_numbers_and_their_figures_afterwards(
    directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = checkpoint.read_config(directory)
    data, other = write_set(tmp_path / "things"), write_set(tmp_path / "others")
    monkeypatch.setattr(concepts, "LEAST_NAMES", 3)
    assert calibrate.main([str(directory), "--data", str(data), "--data", str(other)]) == 0
    shown = capsys.readouterr().out
    checkpoint.verify(directory)
    after = checkpoint.read_config(directory)
    assert after.fitted.presence != before.fitted.presence
    assert after.fitted.presence.regions is None  # random weights find no regions that fit
    assert after.fitted.attention in calibrate.SHARPNESS
    assert after.fitted.min_label_score in outlines.LEAST
    assert after.fitted.text_weight == before.fitted.text_weight  # all photographs hold all names
    search = after.fitted.search
    assert search is None or search.explained in searches.EXPLAINED
    about = json.loads((directory / checkpoint.LINEAGE).read_text())["calibration"]
    report = sum(part_of(str(i)) == "report" for i in range(9))
    assert (about["data"], about["dtype"]) == (["things", "others"], "float32")
    assert about["names_photographs"] == about["others_everything_photographs"] == report
    assert (about["names_present"], about["names_absent"]) == (3 * report, 2 * report)
    assert {"semantic_miou", "semantic_without_attention_miou_low"} <= about.keys()
    assert about["things"] == about["things_everything_regions"] == 3 * report
    assert about["things_everything_recall_low"] <= about["things_everything_recall"]
    assert about["others_everything_recall"] == pytest.approx(about["things_everything_recall"])
    right, wrong = about["things_named_right"], about["things_named_wrong"]
    assert right <= about["things_named_right_without_min_score"]
    assert wrong <= about["things_named_wrong_without_min_score"]
    assert after.fitted.concepts is not None
    assert after.fitted.concepts.bias in concepts.BIASES
    assert about["concept_own_low"] <= about["concept_own"] <= about["concept_own_high"]
    assert f"digest {checkpoint.digest(directory)}" in shown


def test_a_limit_counts_for_each_part_of_a_set(tmp_path: Path) -> None:
    """``samclip eval --suite documents`` otherwise takes as long as without one."""
    given = calibrate.Given.of([write_set(tmp_path / name) for name in "ab"], 1)
    parts = given.choose, given.report, *given.others["b"]
    assert [len(samples) for samples in parts] == [1, 1, 1, 1]


def pairs(folder: Path) -> Path:
    """Write a set whose photographs have two things of one name and one of another."""
    made = {}
    for seed in range(9):
        files = photograph(seed, maps=True)
        info = json.loads(files["json"])
        for thing, name in zip(info["instances"], ("dog", "dog", NAMES[2 + seed % 3]), strict=True):
            thing["category"] = name
        made[f"{seed}"] = files | {"json": json.dumps(info).encode()}
    write_set(folder)
    write_shard(folder / "val-00000.tar", made)
    return folder


def numbers(value: object) -> list[float]:
    """Return the numbers of a calibration, in the order of its fields; a missing one is -1."""
    if isinstance(value, dict):
        return [number for each in value.values() for number in numbers(each)]
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value), "<f2").astype(float).tolist()
    return [-1.0 if value is None else float(value)]


def test_calibrating_twice_changes_nothing(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With random weights no region fits a thing by half, so here a tenth is enough."""
    for module, name in ((examples, "FITS"), (words, "FITS"), (searches, "MATCH")):
        monkeypatch.setattr(module, name, 0.1)
    monkeypatch.setattr(examples, "MAX_COMMON", 1.0)  # and each covers the example
    data, weights = pairs(tmp_path / "pairs"), (directory / checkpoint.WEIGHTS).read_bytes()
    found = [checkpoint.read_config(directory).fitted]
    for _ in range(2):
        calibrate.calibrate(str(directory), [data])
        found.append(checkpoint.read_config(directory).fitted)
    before, once, twice = found
    assert once.search != before.search  # so that regions are others than before
    assert once.alike != before.alike
    assert numbers(asdict(twice)) == pytest.approx(numbers(asdict(once)), abs=1e-6)
    assert (directory / checkpoint.WEIGHTS).read_bytes() == weights


def test_a_folder_that_cannot_be_written_is_refused_before_the_fits(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(directory))

    monkeypatch.setattr(calibrate.tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(calibrate.SamClip, "load", None)
    data = write_set(tmp_path / "things", maps=False)
    assert calibrate.main([str(directory), "--data", str(data)]) == 1
    assert "Read-only file system" in capsys.readouterr().err


def test_without_label_maps_the_attention_stays_as_it_is(directory: Path, tmp_path: Path) -> None:
    data = write_set(tmp_path / "things", maps=False)
    fitted = checkpoint.read_config(directory).fitted
    checkpoint.calibrate(directory, replace(fitted, attention=40.0), {})
    figures, _ = calibrate.calibrate(str(directory), [data])
    assert checkpoint.read_config(directory).fitted.attention == 40
    assert "semantic_miou" not in figures


def test_things_whose_name_is_none_of_the_set_do_not_count(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_set(tmp_path / "things", maps=False)
    classes = json.loads((data / "classes.json").read_text())
    classes["classes"][1]["name"] = "wolf"  # the photographs have a "dog"
    (data / "classes.json").write_text(json.dumps(classes))
    assert calibrate.main([str(directory), "--data", str(data)]) == 0, capsys.readouterr().err
    about = json.loads((directory / checkpoint.LINEAGE).read_text())["calibration"]
    assert about["names_present"] == 2 * about["names_photographs"]


@pytest.mark.parametrize(
    "outline", [[[1, 1, 9, 1, 9, 9]], {"size": [9, 9], "counts": [40, 41]}], ids=["polygon", "runs"]
)
def test_an_outline_in_another_form_is_named(outline: object) -> None:
    thing = {"category": "dog", "iscrowd": 0, "segmentation": outline}
    one = sample("things", info={"instances": [thing]})
    with pytest.raises(ValueError, match="an outline is no compressed RLE of COCO"):
        outlines.outlined_things(one)


def test_what_cannot_be_fitted_says_what_is_missing(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = checkpoint.digest(directory)
    (tmp_path / "empty").mkdir()
    everywhere = write_set(tmp_path / "everywhere", maps=False, names=3)
    bare = make_tiny_checkpoint(tmp_path / "bare", "radio", **WITHOUT_MASKS)
    for name, data, message in (
        (str(directory), tmp_path / "empty", "empty has no classes.json: give the folder"),
        (str(directory), everywhere, "names are in their photographs: give photographs"),
        ("hf://owner/name", everywhere, "hf://owner/name is read-only: fetch it"),
        ("none", everywhere, "no checkpoint 'none'"),
        (str(bare), everywhere, "'tiny-v4' makes no masks"),
    ):
        assert calibrate.main([name, "--data", str(data)]) == 1
        assert message in capsys.readouterr().err
    assert checkpoint.digest(directory) == before
