"""The commands and the recipe in docs/training.md are valid: recipes, fields, models, options."""

from pathlib import Path

import open_clip
import pytest

from samclip_core.commands.models import MODELS
from tests import documents
from tests.checkout import ROOT
from training import train
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
    if ":" not in options.clip:
        assert options.clip in {"", *MODELS}
    else:
        model, tag = options.clip.partition(":")[0].partition("/")[::2]
        assert model == "local-dir" or tag in open_clip.list_pretrained_tags_by_model(model)


def test_the_documented_recipe_is_one():
    recipe = recipe_of("mine.py:flowers")
    assert dict(recipe.photo_sets)["flowers"] == 5
