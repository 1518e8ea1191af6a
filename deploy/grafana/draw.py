"""Draw every dashboard from a Prometheus server to a PNG, without Grafana.

python deploy/grafana/draw.py http://127.0.0.1:9090 --minutes 10 --out out/dashboards
"""

import argparse
import json
import time
import urllib.parse
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("agg")

import matplotlib.dates as mdates
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

DASHBOARDS = Path(__file__).with_name("dashboards")
POINTS = 120  # per curve
LINES = 14  # per legend


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("prometheus", help="URL of the Prometheus server")
    options.add_argument("--minutes", type=float, default=10, help="time range up to now (10)")
    options.add_argument("--window", default="1m", help="window of rates (1m)")
    options.add_argument("--out", type=Path, default=Path("out/dashboards"))
    arguments = options.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for path in sorted(DASHBOARDS.glob("*.json")):
        dashboard = json.loads(path.read_text())
        target = arguments.out / f"{path.stem}.png"
        draw(dashboard, arguments.prometheus, arguments.minutes, arguments.window, target)
        print(target)


def queries(panel: dict[str, Any], window: str) -> list[tuple[str, str]]:
    """Return each query of a panel with its legend, with Grafana's rate interval filled in."""
    return [
        (target["expr"].replace("$__rate_interval", window), target["legendFormat"])
        for target in panel["targets"]
    ]


def ask(prometheus: str, query: str, minutes: float) -> list[dict[str, Any]]:
    """Return the series of a query over the last minutes."""
    end = time.time()
    step = max(1.0, 60 * minutes / POINTS)
    fields = {"query": query, "start": end - 60 * minutes, "end": end, "step": step}
    url = f"{prometheus}/api/v1/query_range?{urllib.parse.urlencode(fields)}"
    with urllib.request.urlopen(url, timeout=60) as reply:
        return list(json.load(reply)["data"]["result"])


def draw(
    dashboard: dict[str, Any], prometheus: str, minutes: float, window: str, target: Path
) -> None:
    panels = dashboard["panels"]
    rows = (len(panels) + 1) // 2
    figure, axes = plt.subplots(rows, 2, figsize=(15, 2.7 * rows), squeeze=False)
    figure.suptitle(dashboard["title"])
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax, panel in zip(axes.flat, panels, strict=False):
        series = [
            (_named(legend, found["metric"]), found["values"])
            for query, legend in queries(panel, window)
            for found in ask(prometheus, query, minutes)
        ]
        ax.set_title(f"{panel['title']} [{panel['fieldConfig']['defaults']['unit']}]", fontsize=9)
        ax.tick_params(labelsize=7)
        if panel["type"] == "timeseries":
            _curves(ax, panel, series)
        else:
            _bars(ax, series)
    figure.tight_layout()
    figure.savefig(target, dpi=60)
    plt.close(figure)


def _named(legend: str, labels: dict[str, str]) -> str:
    for name, value in labels.items():
        shown = value[:12] if name == "digest" else value
        legend = legend.replace("{{" + name + "}}", shown)
    return legend


def _curves(ax: Axes, panel: dict[str, Any], series: list[tuple[str, list[Any]]]) -> None:
    custom = panel["fieldConfig"]["defaults"]["custom"]
    ranked = sorted(series, key=lambda found: -max(float(value) for _, value in found[1]))
    for index, (name, values) in enumerate(ranked):
        times = [datetime.fromtimestamp(at, UTC) for at, _ in values]
        label = name if index < LINES else None
        points = np.array([float(value) for _, value in values])
        ax.plot(times, points, label=label, linewidth=1.2)
    if "scaleDistribution" in custom:
        ax.set_yscale("log")
    else:
        ax.set_ylim(0, 1.1 * max(line.get_ydata().max() for line in ax.lines) if ranked else 1)
    locator = ax.xaxis.get_major_locator()
    ax.xaxis.set_major_formatter(mdates.ConciseDateFormatter(locator, show_offset=False))
    ax.grid(alpha=0.3)
    if ranked:
        ax.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def _bars(ax: Axes, series: list[tuple[str, list[Any]]]) -> None:
    latest = [(name, float(values[-1][1])) for name, values in series]
    bars = ax.barh([name for name, _ in latest], [value for _, value in latest])
    size = 7 if len(latest) < 12 else 4
    ax.bar_label(bars, fmt="%.3g", fontsize=size)
    ax.tick_params(axis="y", labelsize=size)


if __name__ == "__main__":
    main()
