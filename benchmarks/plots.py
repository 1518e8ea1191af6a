"""Plots of the results: requests per second beside other servers, CPU time per process."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks import cpu, side_by_side
from benchmarks.lines import Line


def draw(lines: Sequence[Line], folder: Path) -> list[Path]:
    """Draw the plots that have figures; return their paths."""
    sums = {cpu.WHOLE, cpu.ABOVE, cpu.RATE}
    spent = [
        line
        for line in lines
        if line.table == cpu.ACCOUNT and line.row not in sums and line.column in cpu.LOADS
    ]
    rates = [line for line in lines if line.table == side_by_side.TABLE and line.unit == "/s"]
    made = []
    for title, chosen, stacked in (
        (side_by_side.TABLE, rates, False),
        (f"{cpu.ACCOUNT}, ms", spent, True),
    ):
        if chosen:
            made.append(folder / f"{title.partition(',')[0].replace(' ', '-')}.png")
            _bars(title, chosen, stacked, made[-1])
    return made


def _bars(title: str, lines: Sequence[Line], stacked: bool, path: Path) -> None:
    """Draw a group or a stack of bars per column, with one bar per row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 5), layout="constrained")
    columns = list(dict.fromkeys(line.column for line in lines))
    rows = list(dict.fromkeys(line.row for line in lines))
    found = {(line.row, line.column): line.median for line in lines}
    left = [0.0] * len(columns)
    for number, row in enumerate(rows):
        values = [found.get((row, column), 0.0) for column in columns]
        shift, height = (0.0, 0.8) if stacked else (0.8 * number / len(rows), 0.8 / len(rows))
        places = [place + shift for place in range(len(columns))]
        axes.barh(places, values, height, left=left, label=row)
        left = [a + b for a, b in zip(left, values, strict=True)] if stacked else left
    axes.set_yticks(range(len(columns)), columns)
    axes.invert_yaxis()
    axes.set_title(title)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
