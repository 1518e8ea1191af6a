"""The goals of the project: one bound per figure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from benchmarks import cpu, library, side_by_side, start, vit_b
from benchmarks.lines import Line

SIGNS = {"at least": "≥", "at most": "≤"}


@dataclass(frozen=True)
class Goal:
    """A bound for the figure at ``row`` and ``column``, in the unit of the figure."""

    what: str
    table: str
    row: str
    column: str
    sense: Literal["at least", "at most"]
    bound: float

    def reached(self, line: Line) -> bool:
        return line.median >= self.bound if self.sense == "at least" else line.median <= self.bound

    def row_of_table(self, line: Line | None) -> str:
        """Return a row of Markdown."""
        bound = f"{SIGNS[self.sense]} {self.bound:g}"
        if line is None:
            return f"| {self.what} | {bound} | not measured | |"
        verdict = "reached" if self.reached(line) else "**missed**"
        return f"| {self.what} | {bound} {line.unit} | {line} | {verdict} |"


def _library(row: str, column: str, bound: float) -> Goal:
    return Goal(f"{row}: {column}", library.TABLE, row, column, "at least", bound)


def _peers(column: str, bound: float) -> Goal:
    row = side_by_side.BEST
    return Goal(f"{column}: {row}", side_by_side.TABLE, row, column, "at least", bound)


FLOAT32, BEST = library.COMPARED
IDLE, BUSY = library.STATES
GOALS = [
    _library(f"new image, {IDLE}", FLOAT32, 2.2),
    _library(f"new image, {IDLE}", BEST, 1.8),
    _library(f"new image, {BUSY}", FLOAT32, 4.0),
    _library(f"click, {IDLE}", BEST, 1.0),
    _library(f"click, {BUSY}", FLOAT32, 2.0),
    Goal(library.EVERYTHING, library.TABLE, library.EVERYTHING, library.OURS, "at most", 2500),
    *(
        Goal(f"`vit-b`, {ours}: {vit_b.RATIO}", vit_b.TABLE, vit_b.RATIO, ours, "at least", bound)
        for ours, bound in (("ours float32", 2.5), (vit_b.FASTEST, 5.0))
    ),
    Goal("ready, first start", start.TABLE, "ready, first start", "ours", "at most", 20.0),
    Goal("ready, second start", start.TABLE, "ready, second start", "ours", "at most", 9.0),
    Goal("memory, idle (PSS)", start.TABLE, "memory, idle (PSS)", "ours", "at most", 1.6),
    *(
        Goal(f"CPU {cpu.ABOVE}, {column}", cpu.ACCOUNT, cpu.ABOVE, column, "at most", 7.0)
        for column in ("new images, 8 clients", "new images, 32 clients")
    ),
    _peers("all new, 8 clients", 1.5),
    _peers("all new, 32 clients", 1.5),
    _peers("a working day, 8 clients", 5.0),
]


def table(lines: Iterable[Line]) -> str:
    """Return a Markdown table of every goal with its figure."""
    found = {line.name: line for line in lines}
    rows = ["| figure | goal | measured | |", "|---|---|---|---|"]
    for goal in GOALS:
        rows.append(goal.row_of_table(found.get((goal.table, goal.row, goal.column))))
    return "\n".join(rows)
