"""Measure a network while it trains, by a suite of ``samclip eval``."""

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from samclip_core.io import checkpoint
from samclip_core.model import SamClip
from samclip_core.nn.network import SamClipNet
from samclip_core.nn.text_encoder import TextEncoder
from training.evaluation.suite import Options
from training.recipes import Recipe, Run
from training.suites import Axis

PHOTOGRAPHS = 500
"""Most photographs that are measured, spread evenly over the set."""


def check_stops(recipe: Recipe, data: str) -> None:
    """Raise ValueError if a stage stops by a figure that is not known or has no photographs."""
    for name in ("sam_teacher", "head_probing", "joint", "adaptation"):
        schedule = getattr(recipe, name)
        if schedule is None or not schedule.stop_on:
            continue
        try:
            root = _axis(data, schedule.stop_on).root
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"{name}.stop_on: {error}") from error
        if name == "sam_teacher" or not root.is_dir():
            raise ValueError(
                f"{name}.stop_on={schedule.stop_on}: expected a stage that has words, and a folder "
                f"on a disk; {root} is {'one' if root.is_dir() else 'none'}"
            )


def _axis(data: str, stop_on: str) -> Axis:
    axis = Axis.read(stop_on)
    return axis._replace(root=Path(data) / axis.root)


def measure(run: Run, text_encoder: TextEncoder, stop_on: str) -> Callable[[SamClipNet], float]:
    """Return what measures the network as it would be served; the workers share the photographs.

    Our own sets are measured on the third that is for choosing.
    """
    axis = _axis(run.data, stop_on)
    options = Options(root=axis.root, limit=PHOTOGRAPHS, part="select")

    def measured(net: SamClipNet) -> float:
        served = copy.deepcopy(net).cpu()
        with TemporaryDirectory() as scratch:
            directory = Path(scratch) / "checkpoint"
            checkpoint.save(directory, served, text_encoder, run.config, {})
            model = SamClip.load(directory, str(run.device), "float32", engine="torch")
        return axis.measure(model, options)

    return measured
