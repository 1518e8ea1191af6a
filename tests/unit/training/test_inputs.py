"""The files of a run are found by workers that Ray starts in other folders."""

import argparse
from pathlib import Path

import pytest

from samclip_core.errors import CheckpointError
from samclip_core.io import checkpoint
from training import train
from training.claims import pipeline
from training.distillation import embeddings
from training.evaluation import evaluate
from training.inputs import LOCATIONS, locate, photograph_sets

NOTHING = dict.fromkeys(LOCATIONS, "") | {"text_tower": "edge"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with files and a checkpoint."""
    monkeypatch.chdir(tmp_path)
    for name in ("sets", "siglip", "targets"):
        (tmp_path / name).mkdir()
    for name in ("sam.pth", "clip.bin"):
        (tmp_path / name).write_text("")
    (tmp_path / "own").mkdir()
    checkpoint.seal(tmp_path / "own")
    return tmp_path


def test_paths_become_absolute(here: Path):
    given = {"data": "sets", "sam": "sam.pth", "start": "./sam.pth", "targets": "targets/"}
    given |= {"clip": "ViT-B-32/openai:clip.bin", "dense": "test_vit:clip.bin"}
    assert locate(NOTHING | given, "vit-b") == {
        "data": f"{here}/sets",
        "sam": f"{here}/sam.pth",
        "start": f"{here}/sam.pth",
        "clip": f"ViT-B-32/openai:{here}/clip.bin",
        "dense": f"test_vit:{here}/clip.bin",
        "targets": f"{here}/targets",
        "text_tower": "edge",
    }
    assert locate({"clip": "local-dir:siglip"}, "vit-b") == {"clip": f"local-dir:{here}/siglip"}


def test_checkpoints_become_absolute_unless_they_are_bundled(here: Path):
    given = {"data": str(here), "start": "own", "text_tower": "edge"}
    assert locate(given, "edge") == given | {"start": f"{here}/own"}
    with pytest.raises(CheckpointError, match="no checkpoint 'none'"):
        locate({"start": "none"}, "edge")


def test_teachers_may_be_checkpoints(here: Path):
    given = {"sam": "own", "clip": "./own", "dense": "own", "start": "own"}
    assert locate(given, "vit-b") == dict.fromkeys(given, f"{here}/own")


def test_a_published_model_that_is_not_here_can_be_pulled(here: Path):
    with pytest.raises(
        FileNotFoundError, match=r"--clip radio-b: .*; `samclip pull radio-b` makes"
    ):
        locate({"clip": "radio-b"}, "vit-b")


def test_a_url_stays():
    assert locate({"data": "memory://sets"}, "edge") == {"data": "memory://sets"}


@pytest.mark.parametrize(
    ("option", "value"),
    [("data", "none"), ("sam", "none.pth"), ("clip", "ViT-B-32:none.bin"), ("targets", "none")],
)
def test_a_missing_file_ends_the_command_with_one_line(
    here: Path, option: str, value: str, capsys: pytest.CaptureFixture[str]
):
    given = {"sam": "sam.pth", "clip": "ViT-B-32:clip.bin", "data": "sets", option: value}
    words = [word for name, text in given.items() for word in (f"--{name}", text)]
    assert train.main(["--recipe", "vit-b", "--out", "run", *words]) == 1
    assert capsys.readouterr().err == (
        f"samclip train: --{option} {value}: there is no such file or folder\n"
    )


@pytest.mark.parametrize(
    ("given", "variable", "expected"),
    [("/given", "/set", "/given"), (None, "/set", "/set"), ("s3://bucket/sets", "", None)],
)
def test_the_flag_comes_before_the_variable(
    given: str | None, variable: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SAMCLIP_DATA", variable)
    found = photograph_sets(argparse.ArgumentParser(), "--data", given)
    assert found == (expected or given)


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (train.main, "--data"),
        (evaluate.main, "--root"),
        (embeddings.main, "--data"),
        (pipeline.main, "--root"),
    ],
)
def test_without_either_a_command_says_what_is_expected(
    command, flag: str, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.delenv("SAMCLIP_DATA", raising=False)
    with pytest.raises(SystemExit) as exit_:
        command([])
    assert exit_.value.code == 2
    assert f"no photographs: give {flag} or set SAMCLIP_DATA" in capsys.readouterr().err
