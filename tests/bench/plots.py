"""Pictures of the results: who answers how many, how long it takes as load grows, and on what."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.lines import Line
from tests.bench.report import Report


def draw(report: Report, folder: Path) -> list[Path]:
    """The pictures that there are figures for."""
    import matplotlib

    matplotlib.use("Agg")
    made = []
    for name, plot in (("open-loop", _open_loop), ("throughput", _stages), ("peers", _peers)):
        if report.parts.get(name):
            made.append(folder / f"{name}.png")
            plot(report.parts[name], made[-1])
    return made


def _figure(title: str) -> tuple[Any, Any]:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    axes.set_title(title)
    return figure, axes


def _open_loop(lines: Sequence[Line], path: Path) -> None:
    figure, axes = _figure("latency as the rate grows (Poisson), median and p99")
    curves: dict[str, list[Line]] = {}
    for line in lines:
        if "due" in line.facts:
            curves.setdefault(line.name.rpartition(", ")[0], []).append(line)
    for number, (name, curve) in enumerate(curves.items()):
        rates = [line.facts["due"] for line in curve]
        axes.plot(rates, [line.median for line in curve], f"C{number}o-", label=name)
        axes.plot(rates, [line.p99 for line in curve], f"C{number}o:")
    axes.set(xlabel="requests a second", ylabel="ms", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=120)


def _stages(lines: Sequence[Line], path: Path) -> None:
    figure, axes = _figure("mean time in each stage, as the service measures it")
    rows = [line for line in lines if "stages_ms" in line.facts and line.name.startswith("grpc")]
    left = [0.0] * len(rows)
    names = list(dict.fromkeys(stage for line in rows for stage in line.facts["stages_ms"]))
    for number, stage in enumerate(names):
        widths = [line.facts["stages_ms"].get(stage, 0.0) for line in rows]
        axes.barh([line.name for line in rows], widths, left=left, label=stage, color=f"C{number}")
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set(xlabel="ms")
    axes.invert_yaxis()
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _peers(lines: Sequence[Line], path: Path) -> None:
    figure, axes = _figure("images a second, new images")
    rows = [line for line in lines if line.unit == "/s"]
    errors = [
        [line.median - line.spread[0] for line in rows],
        [line.spread[1] - line.median for line in rows],
    ]
    axes.barh([line.name for line in rows], [line.median for line in rows], xerr=errors)
    axes.invert_yaxis()
    figure.savefig(path, dpi=120)
