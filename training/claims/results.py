"""What every claim leaves behind: its figures as json, its table as Markdown, its picture."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def write(out: Path, name: str, found: Mapping[str, Any], text: str, figure: Figure | None) -> None:
    """Write ``name.json``, ``name.md`` and, with a figure, ``name.png`` into ``out``; print."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")
    (out / f"{name}.md").write_text(text)
    if figure is not None:
        figure.savefig(out / f"{name}.png", dpi=110)
    print(text, end="")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
