"""Figures that were measured in several rounds, and tables of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Line:
    """A cell of a table. ``rounds`` has one value per round, in ``unit``: "ms", "/s", "×", …"""

    table: str
    row: str
    column: str
    unit: str
    rounds: Sequence[float]

    @property
    def name(self) -> tuple[str, str, str]:
        return self.table, self.row, self.column

    @property
    def median(self) -> float:
        return float(np.median(self.rounds))

    def __str__(self) -> str:
        """Return the median and, for several rounds, the least and the greatest value."""
        text = f"{_digits(self.median)} {self.unit}"
        if len(self.rounds) > 1:
            text += f" ({_digits(min(self.rounds))} to {_digits(max(self.rounds))})"
        return text


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ratio(row: str, column: str, above: Line, below: Line) -> Line:
    """Return the ratio in each round, as a slower machine slows both; in the table of ``above``."""
    rounds = [a / b for a, b in zip(above.rounds, below.rounds, strict=True)]
    return Line(above.table, row, column, "×", rounds)


def tables(lines: Iterable[Line]) -> str:
    """Return the tables that the lines name as Markdown, in the order of the lines."""
    by_name: dict[str, list[Line]] = {}
    for line in lines:
        by_name.setdefault(line.table, []).append(line)
    return "\n\n".join(_table(name, cells) for name, cells in by_name.items())


def _table(name: str, cells: Sequence[Line]) -> str:
    columns = list(dict.fromkeys(cell.column for cell in cells))
    text = [f"| {name} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row in dict.fromkeys(cell.row for cell in cells):
        figures = {cell.column: str(cell) for cell in cells if cell.row == row}
        text.append(f"| {row} | {' | '.join(figures.get(column, '') for column in columns)} |")
    return "\n".join(text)
