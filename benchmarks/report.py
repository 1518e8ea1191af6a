"""The results by part, as JSON and as Markdown."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import goals
from benchmarks.lines import Line, tables

RESULTS = Path(__file__).with_name("RESULTS.md")
BEGIN, END = "<!-- begin: made by make bench -->", "<!-- end -->"


@dataclass
class Report:
    """Results by part; parts may come from different runs, the ratios of a part from one."""

    checkpoint: dict[str, str]
    parts: dict[str, list[Line]] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)  # per part: date, machine, …

    @classmethod
    def continued(cls, path: Path, checkpoint: dict[str, str]) -> "Report":
        """Read what earlier runs measured for the same checkpoint; empty if there is nothing."""
        if not path.exists():
            return cls(checkpoint)
        values = json.loads(path.read_text())
        if values["checkpoint"] != checkpoint:
            return cls(checkpoint)
        lines = {name: part.pop("lines") for name, part in values["parts"].items()}
        parts = {name: [Line.from_json(line) for line in part] for name, part in lines.items()}
        return cls(checkpoint, parts, values["parts"])

    @property
    def lines(self) -> list[Line]:
        return [line for part in self.parts.values() for line in part]

    def write(self, path: Path) -> None:
        parts = {
            name: self.facts[name] | {"lines": [line.to_json() for line in part]}
            for name, part in self.parts.items()
        }
        values = {"checkpoint": self.checkpoint, "parts": parts}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values, indent=1) + "\n")


def markdown(report: Report) -> str:
    """Return the goals and the tables of each part as Markdown."""
    sections = [
        f"## {name}\n\n{_origin(name, report.facts[name])}\n\n{tables(part)}"
        for name, part in report.parts.items()
        if part
    ]
    return "\n\n".join([goals.table(report.lines), *sections])


def _origin(part: str, facts: Mapping[str, Any]) -> str:
    machine = facts["machine"]
    instructions = ", ".join(machine["instructions"])
    quick = " --quick" if facts["quick"] else ""
    text = (
        f'`make bench ARGS="--only {part}{quick}"`, {facts["date"]}, {machine["cores"]} cores of '
        f"{machine['processor']} ({instructions}), load {facts['load']:.1f} before"
    )
    baseline = facts["baseline"]
    return f"{text}, baseline {baseline}." if baseline else f"{text}."


def refresh(path: Path, report: Report) -> None:
    """Replace the text between the marks of a document."""
    before, _, rest = path.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n\n{markdown(report)}\n\n{END}{after}")
