"""``--local``: the same answers as the library's, through the client's own types."""

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
from PIL import Image
from samclip import cli
from skimage import data

from samclip_core import Area, Prompt, SamClip
from samclip_core.types import TextPrompt


@cache
def model() -> SamClip:
    return SamClip.load("edge")


@pytest.fixture
def cat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a photograph, and share one loaded model between all commands."""
    loaded = model()
    monkeypatch.setattr(SamClip, "load", lambda name: loaded)
    path = tmp_path / "cat.png"
    Image.fromarray(data.chelsea()).save(path)
    return str(path)


@pytest.fixture
def local(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*argv: str) -> list[dict[str, Any]]:
        assert cli.main([*argv, "--local", "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["model"]["digest"] == model().digest
        rows: list[dict[str, Any]] = answer["results"]
        return rows

    return run


def pixels(row: dict[str, Any]) -> np.ndarray:
    return np.asarray(pycocotools.mask.decode(row["segmentation"]), bool)


def test_classify_and_parts(local: Any, cat: str) -> None:
    expected = model().classify(data.chelsea(), ["cat", "dog"])
    rows = local("classify", cat, "--labels", "cat", "dog")
    assert [(row["label"], row["score"]) for row in rows] == [
        (score.label, pytest.approx(score.score)) for score in expected
    ]
    area = Area(box=(15, 0, 385, 299))
    ((best, *_),) = model().classify_areas(data.chelsea(), [area], ["cat", "dog"])
    (row,) = local(
        "classify", cat, "--labels=cat,dog", "--top-k", "1", "--box", "15", "0", "385", "299"
    )
    assert (row["label"], row["similarity"]) == (best.label, pytest.approx(best.similarity))


def test_segment_by_points_box_and_text(local: Any, cat: str) -> None:
    features = model().encode(data.chelsea())
    prompt = Prompt(points=((200, 60), (20, 20)), negative=(False, True))
    (expected,) = model().segment(features, [prompt])
    rows = local("segment", cat, "--point", "200", "60", "--negative", "20", "20", "--multimask")
    assert all(
        (pixels(row) == mask).all() for row, mask in zip(rows, expected.masks_MHW, strict=True)
    )
    assert [row["predicted_iou"] for row in rows] == pytest.approx(
        expected.predicted_iou_M.tolist()
    )
    ((found, *_),) = model().find(features, [TextPrompt("a cat", ("a dog",))])
    row, *_ = local("segment", cat, "--text", "a cat", "--not", "a dog")
    assert (pixels(row) == found.mask_HW).all()
    assert (row["label"], row["label_score"]) == (found.label, pytest.approx(found.label_score))


def test_everything_and_its_panoptic_picture(local: Any, cat: str, tmp_path: Path) -> None:
    expected = model().segment_everything(data.chelsea(), 4, ["cat", "wall"])
    options = ("--points-per-side", "4", "--labels", "cat", "wall")
    rows = local("everything", cat, *options)
    assert [row["label"] for row in rows] == [mask.label for mask in expected]
    assert (pixels(rows[0]) == expected[0].mask_HW).all()
    segments = local("everything", cat, *options, "--panoptic", "--out", str(tmp_path / "out"))
    assert {segment["label"] for segment in segments} <= {"cat", "wall", ""}
    content = json.loads((tmp_path / "out/panoptic.json").read_text())
    assert content["images"][0]["file_name"] == "cat.png"


def test_semantic_and_explain(local: Any, cat: str) -> None:
    expected = model().segment_text(data.chelsea(), ["cat", "blanket"])
    rows = local("semantic", cat, "--labels", "cat", "blanket")
    assert [(row["label"], row["area"]) for row in rows] == [
        (region.label, region.area) for region in expected.regions
    ]
    assert (pixels(rows[0]) == expected.regions[0].mask_HW).all()
    heat = model().explain(data.chelsea(), "cat")
    (row,) = local("explain", cat, "--label", "cat")
    assert (row["low"], row["high"]) == (pytest.approx(heat.low), pytest.approx(heat.high))


def test_embed(local: Any, cat: str) -> None:
    image, text = local("embed", cat, "--text", "a cat")
    assert image["vector"] == pytest.approx(model().embed_image(data.chelsea()).tolist(), abs=1e-6)
    assert text["vector"] == pytest.approx(model().embed_text(["a cat"])[0].tolist(), abs=1e-6)


def test_a_bad_file_and_a_bad_prompt_are_passed_over(
    cat: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"broken")
    assert cli.main(["classify", str(broken), cat, "--labels", "cat", "--local"]) == 1
    out, errors = capsys.readouterr()
    assert cat in out
    assert errors.startswith(f"samclip: {broken}: ")
    assert cli.main(["segment", cat, "--point", "9999", "1", "--local"]) == 1
    assert "lies outside the image" in capsys.readouterr().err


def test_no_such_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["embed", "--text", "x", "--local", "cat.jpg"]) == 1
    error = capsys.readouterr().err
    assert "no checkpoint 'cat.jpg'" in error
    assert "write the images before --local" in error


def test_a_missing_library_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "services.local", None)
    assert cli.main(["embed", "--text", "x", "--local"]) == 1
    assert "pip install -e '.[serve]'" in capsys.readouterr().err
