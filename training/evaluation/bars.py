"""Bar chart of probing results: one group per figure, one bar per checkpoint."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from training.evaluation.suite import Metrics


def draw_bars(figures: Mapping[str, Metrics], path: Path) -> None:
    """Write a PNG with the figures of several checkpoints, keyed by name, in per cent.

    Only mIoU and accuracies are drawn, without their bounds and counts.
    """
    from matplotlib.figure import Figure  # slow to import, and only plots need it

    known = dict.fromkeys(name for metrics in figures.values() for name in metrics)
    names = [name for name in known if name.endswith(("_miou", "_top1"))]
    position = np.arange(len(names))
    thickness = 0.8 / len(figures)
    figure = Figure(figsize=(8, 1 + 0.3 * len(names) * (1 + len(figures))), layout="constrained")
    axes = figure.add_subplot(xlabel="%", xlim=(0, 100))
    for row, (checkpoint, metrics) in enumerate(figures.items()):
        values = [100 * metrics.get(name, 0.0) for name in names]
        bars = axes.barh(position + row * thickness, values, thickness, label=checkpoint)
        axes.bar_label(bars, fmt="%.1f", padding=2)
    axes.set_yticks(position + 0.4 - thickness / 2, [name.replace("_", " ") for name in names])
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=len(figures))
    figure.savefig(path, dpi=150)
