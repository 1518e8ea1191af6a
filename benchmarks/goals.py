"""The goals of the project: one bound per figure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from benchmarks import cpu, library, side_by_side, start
from benchmarks.lines import Line


@dataclass(frozen=True)
class Goal:
    """A bound for the figure at ``row`` and ``column``, in the unit of the figure."""

    table: str
    row: str
    column: str
    sign: Literal["≥", "≤"]
    bound: float

    def reached(self, line: Line) -> bool:
        return line.median >= self.bound if self.sign == "≥" else line.median <= self.bound

    def row_of_table(self, line: Line | None) -> str:
        """Return a row of Markdown."""
        start = f"| {self.row}, {self.column} | {self.sign} {self.bound:g}"
        if line is None:
            return f"{start} | not measured | |"
        verdict = "reached" if self.reached(line) else "**missed**"
        return f"{start} {line.unit} | {line} | {verdict} |"


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
    Goal(side_by_side.TABLE, side_by_side.BEST, "all new, 8 clients", "≥", 1.5),
    Goal(side_by_side.TABLE, side_by_side.BEST, "all new, 32 clients", "≥", 1.5),
    Goal(side_by_side.TABLE, side_by_side.BEST, side_by_side.DAY, "≥", 5.0),
]


def table(lines: Iterable[Line]) -> str:
    """Return a Markdown table of every goal with its figure."""
    found = {line.name: line for line in lines}
    rows = ["| figure | goal | measured | |", "|---|---|---|---|"]
    for goal in GOALS:
        rows.append(goal.row_of_table(found.get((goal.table, goal.row, goal.column))))
    return "\n".join(rows)
