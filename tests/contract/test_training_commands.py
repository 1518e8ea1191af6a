"""The commands and the recipe in docs/training.md are valid: recipes, fields, models, options."""

from pathlib import Path

import open_clip
import pytest
from timm.models import get_pretrained_cfg

from samclip_core.commands.models import MODELS
from tests import documents
from tests.checkout import ROOT
from training import train
from training.evaluation.while_training import check_measures, measures_of
from training.options import override, recipe_of

DOCUMENT = ROOT / "docs/training.md"
COMMANDS = [
    words[words.index("--recipe") :] for words in documents.shown(DOCUMENT) if "--recipe" in words
]


@pytest.fixture(autouse=True)
def _recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the recipe of the document to the file that its commands name."""
    (code,) = [code for language, code in documents.runnable(DOCUMENT) if language == "python"]
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_training_command_is_valid(words: list[str]):
    options = train.parser().parse_args(words)
    assert override(options.recipe, options.set).name
    published = [one for one in (options.clip, options.dense) if ":" not in one]
    assert set(published) <= {"", *MODELS}
    if ":" in options.dense:
        name, _, file = options.dense.partition(":")
        assert file
        assert get_pretrained_cfg(name).input_size
    if ":" in options.clip:
        model, tag = options.clip.partition(":")[0].partition("/")[::2]
        assert model == "local-dir" or tag in open_clip.list_pretrained_tags_by_model(model)


def test_the_documented_recipes_are_some(tmp_path: Path):
    recipe = recipe_of("mine.py:flowers")
    assert dict(recipe.photo_sets)["flowers"] == 5
    watched = recipe_of("mine.py:watched")
    for measures in measures_of(watched):
        for _, folder in measures.suites:
            (tmp_path / folder).mkdir()
    check_measures(watched, str(tmp_path))
    assert measures_of(watched)


def test_a_dense_teacher_without_a_file_is_refused(capsys: pytest.CaptureFixture[str]):
    assert train.parser().parse_args([]).dense == ""
    with pytest.raises(SystemExit):
        train.parser().parse_args(["--dense", "vit_base_patch14_dinov2"])
    assert "vit_base_patch14_dinov2: expected MODEL:FILE" in capsys.readouterr().err


def test_other_teachers_have_commands():
    assert sum("--dense" in words for words in COMMANDS) == 3
