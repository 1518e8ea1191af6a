"""``--local`` answers every command; ``tests/unit/services/test_local.py`` compares the answers."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from samclip import cli
from skimage import data

from samclip_core import SamClip
from services.local import Local


@pytest.fixture
def local(tiny_checkpoint: Path, tiny_model: SamClip, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the option for a model that is loaded once."""
    monkeypatch.setattr(SamClip, "load", lambda name: tiny_model)
    return f"--local={tiny_checkpoint}"


@pytest.fixture
def cat(tmp_path: Path) -> str:
    path = tmp_path / "cat.png"
    Image.fromarray(data.chelsea()).save(path)
    return str(path)


@pytest.mark.parametrize(
    "argv",
    [
        ["classify", "--labels", "cat", "dog"],
        ["classify", "--labels", "cat", "dog", "--box", "15", "0", "385", "299"],
        ["segment", "--point", "200", "60", "--negative", "20", "20", "--multimask"],
        ["segment", "--text", "a cat", "--not", "a dog", "--min-score", "0"],
        ["segment", "--like", "CAT", "--box", "180", "60", "250", "120", "--min-score", "0"],
        ["everything", "--points-per-side", "4", "--labels", "cat", "wall"],
        ["everything", "--points-per-side", "4", "--panoptic"],
        ["semantic", "--labels", "cat", "blanket"],
        ["explain", "--label", "cat"],
        ["embed", "--text", "a cat"],
    ],
    ids=" ".join,
)
def test_every_command_is_answered_by_the_model_in_this_process(
    argv: list[str],
    cat: str,
    local: str,
    tiny_model: SamClip,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command, *options = (cat if word == "CAT" else word for word in argv)
    out = ["--out", str(tmp_path / "out")] if "--panoptic" in options else []
    assert cli.main([command, cat, *options, *out, "--json", local]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["model"]["digest"] == tiny_model.digest
    assert answer["results"]


def test_a_bad_file_and_a_bad_prompt_are_passed_over(
    cat: str, local: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"broken")
    assert cli.main(["classify", str(broken), cat, "--labels", "cat,dog", local]) == 1
    out, errors = capsys.readouterr()
    assert cat in out
    assert errors.startswith(f"samclip: {broken}: ")
    assert cli.main(["segment", cat, "--point", "9999", "1", local]) == 1
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
    assert "pip install -e '.[core]'" in capsys.readouterr().err


def test_a_request_has_no_deadline_of_its_own(
    local: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left, answer = list[float](), Local.answer

    def noted(self: Local, request: Any, most_s: float) -> Any:
        left.append(most_s)
        return answer(self, request, most_s)

    monkeypatch.setattr(Local, "answer", noted)
    assert cli.main(["embed", "--text", "x", local]) == 0
    assert left == [math.inf]


def test_a_request_ends_after_its_time(cat: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["embed", "--text", "x", "--local", "--timeout", "1e-6"]) == 1
    assert "give more --timeout" in capsys.readouterr().err
