"""Tables in Markdown."""

from collections.abc import Iterable, Mapping, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def figure_table(metrics: Mapping[str, float], figure: str = "figure") -> str:
    """Return a table with a figure per row: in per cent, counts and means of counts as they are."""
    rows = [(name.replace("_", " "), _shown(name, value)) for name, value in metrics.items()]
    return table((figure, "value"), rows)


def _shown(name: str, value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value:.2f}" if "_noc" in name or "_per_" in name else f"{value:.1%}"
