"""Charts as SVG: bars side by side, and curves.

``python -m training.results.plots NAME=FIGURES.json …`` draws figure 3 of the paper: the probes of
several models beside each other, as ``samclip eval`` has written them.
"""

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from samclip_core import guarded
from training.results.tables import table

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
HIGH, WIDE, MARGIN = 220, 320, 50  # of a panel's plane, and around it, in pixels
PROBE = re.compile(r"_(tokens|sam|clip)_(?=miou$|top1$)")
Curve = Sequence[tuple[float, float]]


def bars(models: Mapping[str, Mapping[str, float]], unit: str) -> str:
    """Return a chart with a group of bars per figure, and a bar in it per model that has it."""
    figures = list(dict.fromkeys(figure for known in models.values() for figure in known))
    top = max((value for known in models.values() for value in known.values()), default=0) or 1
    width = max(WIDE, len(figures) * (14 * len(models) + 30))
    step, parts = width / max(1, len(figures)), _axes(0, width, (0, top), unit)
    for group, figure in enumerate(figures):
        for place, known in enumerate(models.values()):
            height = HIGH * known.get(figure, 0) / top
            x, y = MARGIN + group * step + 15 + 14 * place, MARGIN + HIGH - height
            colour = COLOURS[place % len(COLOURS)]
            parts += [f'<rect x="{x:.1f}" y="{y:.1f}" width="12" height="{height:.1f}" '
                      f'fill="{colour}"/>']  # fmt: skip
        parts.append(_text(MARGIN + (group + 0.5) * step, MARGIN + HIGH + 15, figure))
    return _drawing(width, [*parts, *_legend(0, models)])


def curves(panels: Mapping[str, Mapping[str, Curve]]) -> str:
    """Return a chart with a panel per stage or figure; each has its own scale."""
    parts: list[str] = []
    for number, (title, lines) in enumerate(panels.items()):
        left = number * (WIDE + MARGIN)
        points = [point for line in lines.values() for point in line]
        (x0, x1), (y0, y1) = ((min(axis), max(axis)) for axis in zip(*points, strict=True))
        parts += _axes(left, WIDE, (y0, y1), title)
        for place, line in enumerate(lines.values()):
            shown = " ".join(
                f"{left + MARGIN + WIDE * _part(x, x0, x1):.1f},"
                f"{MARGIN + HIGH * (1 - _part(y, y0, y1)):.1f}"
                for x, y in line
            )
            colour = COLOURS[place % len(COLOURS)]
            parts.append(f'<polyline points="{shown}" fill="none" stroke="{colour}"/>')
        parts.append(_text(left + MARGIN + WIDE / 2, MARGIN + HIGH + 15, f"step {x0:g} to {x1:g}"))
        parts += _legend(left, lines)
    return _drawing(len(panels) * (WIDE + MARGIN), parts)


def _part(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _axes(left: float, width: float, ends: tuple[float, float], title: str) -> list[str]:
    x = left + MARGIN
    frame = (
        f'<rect x="{x}" y="{MARGIN}" width="{width}" height="{HIGH}" fill="none" stroke="#999"/>'
    )
    numbers = [_text(x - 22, MARGIN + HIGH * (1 - at), f"{ends[at]:.3g}") for at in (0, 1)]
    return [frame, *numbers, _text(x + width / 2, 15, title)]


def _legend(left: float, names: Iterable[str]) -> list[str]:
    return [
        _text(left + MARGIN + 60 + 100 * place, 35, name, COLOURS[place % len(COLOURS)])
        for place, name in enumerate(names)
    ]


def _text(x: float, y: float, text: str, colour: str = "#000") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" fill="{colour}"'
    return f'<text {place} font-size="11" text-anchor="middle">{escape(text)}</text>'


def _drawing(width: float, parts: Iterable[str]) -> str:
    size = f'width="{width + 2 * MARGIN:.0f}" height="{HIGH + 2 * MARGIN}"'
    space = 'xmlns="http://www.w3.org/2000/svg" font-family="sans-serif"'
    return "\n".join([f"<svg {size} {space}>", *parts, "</svg>\n"])


def probes(given: str) -> tuple[str, dict[str, float]]:
    """Read NAME=FIGURES.json,… and return the model's name and its probes, by set and head.

    Raises ArgumentTypeError if there are none.
    """
    name, _, files = given.partition("=")
    try:
        contents = [guarded.read_json(Path(file)) for file in files.split(",")]
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{given!r}: {error}") from error
    figures = {
        PROBE.sub(" ", key).replace("_probe", "").replace("_", " "): float(value)
        for content in contents
        for key, value in (content.items() if isinstance(content, dict) else ())
        if PROBE.search(key)
    }
    if not figures:
        raise argparse.ArgumentTypeError(f"{given!r} has no figure of a probe of samclip eval")
    return name, figures


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the probes of several models as bars; print them as a table."""
    parser = argparse.ArgumentParser(prog="training.results.plots", description=main.__doc__)
    parser.add_argument("models", nargs="+", type=probes, metavar="NAME=FIGURES.json,…")
    parser.add_argument("--out", type=Path, default=Path("out/probes.svg"))
    args = parser.parse_args(argv)
    models = dict(args.models)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(bars(models, "figure 3: frozen features"))
    print(comparison(models), end="")
    return 0


def comparison(models: Mapping[str, Mapping[str, float]]) -> str:
    """Return a table with a row per figure and a column per model."""
    figures = dict.fromkeys(figure for known in models.values() for figure in known)
    rows = [
        [figure, *(f"{known[figure]:.1%}" if figure in known else "" for known in models.values())]
        for figure in figures
    ]
    return table(["figure", *models], rows)


if __name__ == "__main__":
    raise SystemExit(main())
