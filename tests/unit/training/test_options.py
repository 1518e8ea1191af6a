"""Recipes are given by name, from a file or changed, and workers find the files of a run."""

import argparse
import re
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from samclip_core.errors import CheckpointError
from samclip_core.io import checkpoint
from training import evaluate, train
from training.claims import pipeline
from training.options import LOCATIONS, locate, override, photograph_sets, recipe_of
from training.recipes import RECIPES, debug, vit_b
from training.train import parser

NOTHING = dict.fromkeys(LOCATIONS, "") | {"text_tower": "edge"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with files and a checkpoint."""
    monkeypatch.chdir(tmp_path)
    for name in ("sets", "siglip"):
        (tmp_path / name).mkdir()
    for name in ("sam.pth", "clip.bin"):
        (tmp_path / name).write_text("")
    (tmp_path / "own").mkdir()
    checkpoint.seal(tmp_path / "own")
    return tmp_path


@pytest.mark.parametrize(
    ("option", "given", "found"),
    [
        ("data", "sets", "HERE/sets"),
        ("data", "memory://sets", "memory://sets"),
        ("sam", "sam.pth", "HERE/sam.pth"),
        ("start", "./sam.pth", "HERE/sam.pth"),
        ("clip", "ViT-B-32/openai:clip.bin", "ViT-B-32/openai:HERE/clip.bin"),
        ("clip", "local-dir:siglip", "local-dir:HERE/siglip"),
        *((teacher, "own", "HERE/own") for teacher in ("sam", "clip", "start")),
    ],
)
def test_paths_and_checkpoints_become_absolute(here: Path, option: str, given: str, found: str):
    """A checkpoint may be a teacher; the text tower of the bundled one keeps its name."""
    expected = NOTHING | {option: found.replace("HERE", str(here))}
    assert locate(NOTHING | {option: given}, "vit-b") == expected


def test_a_checkpoint_that_is_not_there_is_named(here: Path):
    with pytest.raises(CheckpointError, match="no checkpoint 'none'"):
        locate({"start": "none"}, "edge")


def test_a_published_model_that_is_not_here_can_be_pulled(here: Path):
    with pytest.raises(
        FileNotFoundError, match=r"--clip radio-b: .*; `samclip pull radio-b` makes"
    ):
        locate({"clip": "radio-b"}, "vit-b")


@pytest.mark.parametrize(
    ("option", "value"),
    [("data", "none"), ("sam", "none.pth"), ("clip", "ViT-B-32:none.bin")],
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


def test_an_output_that_cannot_hold_the_run_is_refused_before_any_training(
    here: Path, capsys: pytest.CaptureFixture[str]
):
    files = ("--sam", "sam.pth", "--clip", "ViT-B-32:clip.bin", "--data", "sets")
    given = ["--recipe", "vit-b", *files]
    (here / "run/checkpoint").mkdir(parents=True)
    (here / "run/checkpoint/thesis.tex").write_text("all of it")
    for out, message in (
        ("run", "neither empty nor a checkpoint"),
        ("sam.pth/run", "samclip train: no file could be written to"),
    ):
        assert train.main([*given, "--out", out]) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train.main([*given, "--out", "nowhere://run"])
    assert "--out nowhere://run: Protocol not known: nowhere" in capsys.readouterr().err
    assert not (here / "run/states").exists()


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


OWN = """
from dataclasses import replace
from training.recipes import debug

def mine():
    return replace(debug(), name="mine", photo_sets=(("flowers", 2.0), ("camvid", 0.5)))

def nothing():
    return "mine"

def misspelt():
    return replace(debug(), nam="mine")

def broken():
    raise ValueError("no photo set cc99m")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.py"
    path.write_text(OWN)
    return path


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("misspelt", r"recipe\.py, line 12: TypeError: .*unexpected keyword argument 'nam'"),
        ("broken", r"recipe\.py, line 15: ValueError: no photo set cc99m"),
    ],
)
def test_a_mistake_in_the_file_is_shown_with_its_line(
    file: Path, function: str, message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        parser().parse_args(["--recipe", f"{file}:{function}"])
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("line", ["def mine(:", "import no_such_package", "1 / 0"])
def test_a_file_that_does_not_run_is_shown_with_its_line(tmp_path: Path, line: str):
    (tmp_path / "own.py").write_text(f"\n\n{line}\n")
    with pytest.raises(ArgumentTypeError, match=r"own\.py, line 3: \w+Error: \w+"):
        recipe_of(f"{tmp_path}/own.py:mine")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_found_by_its_name(name: str):
    assert recipe_of(name).name == name


def test_a_recipe_of_ones_own_comes_from_a_function_in_a_file(file: Path):
    recipe = recipe_of(f"{file}:mine")
    assert recipe.name == "mine"
    assert recipe.photo_sets == (("flowers", 2.0), ("camvid", 0.5))
    assert recipe.joint == debug().joint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_b", r"no recipe 'vit_b': expected edge, .*vit-b, .*, or FILE\.py:FUNCTION"),
        ("recipe.py", r"no recipe 'recipe\.py'"),
        ("FOLDER/none.py:mine", r"no file .*none\.py: expected"),
        ("FOLDER/recipe.py:yours", r"no function 'yours', .* it has mine, nothing"),
        ("FOLDER/recipe.py:debug", r"no function 'debug'"),
        ("FOLDER/recipe.py:nothing", r"returned 'mine': expected a training\.recipes\.Recipe"),
    ],
)
def test_another_one_is_refused_with_what_was_expected(file: Path, name: str, message: str):
    with pytest.raises(ArgumentTypeError, match=message):
        recipe_of(name.replace("FOLDER", str(file.parent)))


def test_fields_are_changed_by_their_path():
    changes = [
        "joint.steps=7",
        "dtype=float32",
        'photo_sets=[["a",1.0],["b",0.5]]',
        "adaptation=null",
    ]
    recipe = override(vit_b(), changes)
    assert recipe.joint is not None
    assert recipe.joint.steps == 7
    assert (recipe.dtype, recipe.adaptation) == ("float32", None)
    assert recipe.photo_sets == (("a", 1.0), ("b", 0.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("steps", "expected NAME=VALUE"),
        ("steps=7", "no field 'steps', expected name, kind"),
        ("joint.speed=7", "no field 'speed', expected steps"),
        ("sam_teacher.steps=7", "the recipe does not set this part"),
        ("seed=half", "expected a value like 0"),
        ("dtype=float8", "expected one of bfloat16, float32"),
    ],
)
def test_a_change_that_does_not_fit_is_refused(change: str, message: str):
    with pytest.raises(ValueError, match=message):
        override(vit_b(), [change])
