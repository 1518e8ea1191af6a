"""The output of every claim: figures as JSON, a table as Markdown, a plot."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def write(out: Path, name: str, found: Mapping[str, Any], text: str, figure: Figure | None) -> None:
    """Write ``name.json``, ``name.md`` and, given a figure, ``name.png``; print the text."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")
    (out / f"{name}.md").write_text(text)
    if figure is not None:
        figure.savefig(out / f"{name}.png", dpi=110)
    print(text, end="")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
