"""The project's documents, and the code blocks in them: those that run, and commands only shown."""

import re
import shlex
from pathlib import Path

from services.settings import Settings
from tests.checkout import ROOT

DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "deploy").glob("*.md")),
    *sorted((ROOT / "training").rglob("*.md")),
    ROOT / "benchmarks/RESULTS.md",
    ROOT / "tests/faults/RESULTS.md",
    *sorted((ROOT / "samclip_core").rglob("README.md")),
]


def runnable(document: Path) -> list[tuple[str, str]]:
    """Return (language, code) of each bash and Python block, in order."""
    blocks = r"^```(bash|python)\n(.*?)^```$"
    return re.findall(blocks, document.read_text(), re.DOTALL | re.MULTILINE)


def shown(document: Path) -> list[list[str]]:
    """Return the words of each command in the console blocks, without leading variables."""
    text = document.read_text()
    blocks = re.findall(r"^```console\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [[w for w in words if not re.match(r"[A-Z_]+=", w)] for words in commands if words]


def table_of_settings() -> str:
    """Return the settings as a table in Markdown."""
    rows = ["| setting | default | |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = f"`{field.default}`" if field.default not in (None, "", ()) else ""
        rows.append(f"| `{name}` | {default} | {' '.join((field.description or '').split())} |")
    return "\n".join(rows).replace(str(Path.home()), "~")


BEGIN, END = "<!-- begin: made by make docs -->\n\n", "\n\n<!-- end -->"

MADE = {ROOT / "docs/settings.md": table_of_settings}
"""The documents with a table that the code makes."""


def with_table(document: Path) -> str:
    """Return the text of a document with its table replaced by that of the code."""
    before, rest = document.read_text().split(BEGIN)
    return before + BEGIN + MADE[document]() + END + rest.split(END)[1]


if __name__ == "__main__":
    for document in MADE:
        document.write_text(with_table(document))
