"""What the documents say is there: commands, options, settings, files."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from services.settings import Settings
from tests import readme
from tests.checkout import ROOT

DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "deploy/README.md")]


@pytest.mark.parametrize("words", readme.shown(), ids=" ".join)
def test_commands_exist(words: list[str]) -> None:
    if "training.train" in words:
        words = ["samclip", "train", *words[words.index("training.train") + 1 :]]
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "samclip":
        command = [sys.executable, "-m", "samclip.cli", words[1], "--help"]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        for option in (word for word in words if word.startswith("--")):
            assert option in run.stdout, option
    else:
        assert words[0] in {"pip", "ray", "export"}


def test_the_table_of_settings() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (?:`(.*?)`)? ?\|", readme.TEXT, re.MULTILINE)
    fields = Settings.model_fields.items()
    assert rows == [(name, _shown(field.default)) for name, field in fields]


def _shown(default: object) -> str:
    assert default is not PydanticUndefined
    return "" if default is None else str(default)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", document.read_text())
    for link in (link for link in links if "://" not in link):
        assert (document.parent / link).exists(), link
