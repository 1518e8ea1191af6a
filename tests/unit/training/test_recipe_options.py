import re
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from training.recipe_options import override, recipe_of
from training.recipes import RECIPES, debug, vit_b
from training.train import parser

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
