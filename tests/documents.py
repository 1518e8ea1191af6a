"""The project's documents, and the code blocks in them: those that run, and commands only shown."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


MEASURED = json.loads((ROOT / "training/results/edge.json").read_text())
"""The result of ``samclip eval --suite documents --engine auto --dtype auto``."""
MARKED = re.compile(
    r"(?P<value>\d+(?:\.\d+)?)(?P<unit> ?%?)"
    r"(?: \((?P<low>\d+\.\d+) to (?P<high>\d+\.\d+)\))?<!-- (?P<name>[\w.]+) -->"
)
"""A figure, with its interval or without, and its name in ``figures()``."""


def figures() -> dict[str, float]:
    """Return what was measured with the bundled checkpoint, and its fitted numbers by path."""
    config = json.loads((ROOT / "samclip_core/checkpoints/edge/config.json").read_text())
    return MEASURED | dict(_numbers(config["calibration"]))


def _numbers(values: dict[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{before}{name}.")
        elif isinstance(value, int | float):
            yield before + name, value


def with_figures(text: str) -> str:
    """Return a document with the figures that carry a name replaced by those of ``figures()``."""
    known = figures()

    def filled(match: re.Match[str]) -> str:
        value, unit, low, _, name = match.groups()
        share = 100 if "%" in unit else 1
        digits = len(value.partition(".")[2])
        shown = f"{share * known[name]:.{digits}f}{unit}"
        if low:
            ends = [share * known[f"{name}_{end}"] for end in ("low", "high")]
            shown += " ({:.{digits}f} to {:.{digits}f})".format(*ends, digits=digits)
        return f"{shown}<!-- {name} -->"

    return MARKED.sub(filled, text)


if __name__ == "__main__":
    for document in MADE:
        document.write_text(with_table(document))
    for document in DOCUMENTS:
        document.write_text(with_figures(document.read_text()))
