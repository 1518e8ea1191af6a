"""The results by part, as JSON and as Markdown, and the goals of the project."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks import cpu, library, peers, start
from benchmarks.lines import Line, tables

RESULTS = Path(__file__).with_name("RESULTS.md")
BEGIN, END = "<!-- begin: made by make bench -->", "<!-- end -->"


@dataclass(frozen=True)
class Goal:
    """A bound for the figure at ``row`` and ``column``, in the unit of the figure."""

    table: str
    row: str
    column: str
    sign: Literal["≥", "≤"]
    bound: float

    def row_of_table(self, line: Line | None) -> str:
        start = f"| {self.row}, {self.column} | {self.sign} {self.bound:g}"
        if line is None:
            return f"{start} | not measured | |"
        reached = line.median >= self.bound if self.sign == "≥" else line.median <= self.bound
        return f"{start} {line.unit} | {line} | {'reached' if reached else '**missed**'} |"


FLOAT32, BEST = library.COMPARED
IDLE, BUSY = library.STATES
GOALS = [
    Goal(library.TABLE, f"new image, {IDLE}", FLOAT32, "≥", 2.2),
    Goal(library.TABLE, f"new image, {IDLE}", BEST, "≥", 1.8),
    Goal(library.TABLE, f"new image, {BUSY}", FLOAT32, "≥", 4.0),
    Goal(library.TABLE, f"click, {IDLE}", BEST, "≥", 1.0),
    Goal(library.TABLE, f"click, {BUSY}", FLOAT32, "≥", 2.0),
    Goal(library.TABLE, library.EVERYTHING, library.OURS, "≤", 2500),
    Goal(start.TABLE, "ready, first start", "ours", "≤", 20.0),
    Goal(start.TABLE, "ready, second start", "ours", "≤", 9.0),
    Goal(start.TABLE, "memory, idle (PSS)", "ours", "≤", 1.6),
    Goal(cpu.ACCOUNT, cpu.ABOVE, "new images, 8 clients", "≤", 7.0),
    Goal(cpu.ACCOUNT, cpu.ABOVE, "new images, 32 clients", "≤", 7.0),
    Goal(peers.TABLE, peers.BEST, "all new, 8 clients", "≥", 1.5),
    Goal(peers.TABLE, peers.BEST, "all new, 32 clients", "≥", 1.5),
    Goal(peers.TABLE, peers.BEST, peers.DAY, "≥", 5.0),
]


def goals(lines: Iterable[Line]) -> str:
    """Return a Markdown table of every goal with its figure."""
    measured = {line.name: line for line in lines}
    rows = [g.row_of_table(measured.get((g.table, g.row, g.column))) for g in GOALS]
    return "\n".join(["| figure | goal | measured | |", "|---|---|---|---|", *rows])


@dataclass
class Report:
    """Results by part; parts may come from different runs, the ratios of a part from one."""

    checkpoint: dict[str, str]
    parts: dict[str, list[Line]] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)  # per part: date, machine, …

    @classmethod
    def continued(cls, path: Path, checkpoint: dict[str, str]) -> "Report":
        """Read what earlier runs measured for the same checkpoint; empty if there is nothing."""
        values = json.loads(path.read_text()) if path.exists() else {}
        if values.get("checkpoint") != checkpoint:
            return cls(checkpoint)
        lines = {name: part.pop("lines") for name, part in values["parts"].items()}
        parts = {name: [Line(**line) for line in part] for name, part in lines.items()}
        return cls(checkpoint, parts, values["parts"])

    @property
    def lines(self) -> list[Line]:
        return [line for part in self.parts.values() for line in part]

    def write(self, path: Path) -> None:
        parts = {
            name: self.facts[name] | {"lines": [asdict(line) for line in part]}
            for name, part in self.parts.items()
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps({"checkpoint": self.checkpoint, "parts": parts}, indent=1) + "\n"
        )

    def markdown(self) -> str:
        """Return the goals and the tables of each part as Markdown."""
        sections = [
            f"## {name}\n\n{_origin(name, self.facts[name])}\n\n{tables(part)}"
            for name, part in self.parts.items()
            if part
        ]
        return "\n\n".join([goals(self.lines), *sections])

    def refresh(self, path: Path) -> None:
        """Replace the text between the marks of a document."""
        before, _, rest = path.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        path.write_text(f"{before}{BEGIN}\n\n{self.markdown()}\n\n{END}{after}")


def _origin(part: str, facts: Mapping[str, Any]) -> str:
    machine = facts["machine"]
    instructions = ", ".join(machine["instructions"])
    quick = " --quick" if facts["quick"] else ""
    baseline = f", baseline {facts['baseline']}" if facts["baseline"] else ""
    return (
        f'`make bench ARGS="--only {part}{quick}"`, {facts["date"]}, {machine["cores"]} cores of '
        f"{machine['processor']} ({instructions}), load {facts['load']:.1f} before{baseline}."
    )
