"""``--local`` answers every command; ``tests/unit/services/test_local.py`` compares the answers."""

import json
import sys
from functools import cache
from pathlib import Path

import pytest
from PIL import Image
from samclip import cli
from skimage import data

from samclip_core import SamClip


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


@pytest.mark.parametrize(
    "argv",
    [
        ["classify", "--labels", "cat", "dog"],
        ["classify", "--labels", "cat", "dog", "--box", "15", "0", "385", "299"],
        ["segment", "--point", "200", "60", "--negative", "20", "20", "--multimask"],
        ["segment", "--text", "a cat", "--not", "a dog"],
        ["everything", "--points-per-side", "4", "--labels", "cat", "wall"],
        ["everything", "--points-per-side", "4", "--panoptic"],
        ["semantic", "--labels", "cat", "blanket"],
        ["explain", "--label", "cat"],
        ["embed", "--text", "a cat"],
    ],
    ids=" ".join,
)
def test_every_command_is_answered_by_the_model_in_this_process(
    argv: list[str], cat: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *options = argv
    out = ["--out", str(tmp_path / "out")] if "--panoptic" in options else []
    assert cli.main([command, cat, *options, *out, "--local", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["model"]["digest"] == model().digest
    assert answer["results"]


def test_embeddings_are_the_librarys_own(cat: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["embed", cat, "--text", "a cat", "--local", "--json"]) == 0
    image, text = json.loads(capsys.readouterr().out)["results"]
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


def test_a_request_ends_after_its_time(cat: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["embed", "--text", "x", "--local", "--timeout", "1e-6"]) == 1
    assert "no answer within" in capsys.readouterr().err
