"""Part ``vit-b``: encoding a new image at SAM's own size, compared with segment_anything.

The weights are random, as speed does not depend on them. The CLIP head has no layers, so that only
image encoders are compared.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks import random_vit_b
from benchmarks.bench import Bench
from benchmarks.in_process import SEGMENT_ANYTHING
from benchmarks.library import Call, process, write_files
from benchmarks.lines import Line, ratio
from tests.checkout import ROOT

TABLE, ROW = "`vit-b`, random weights", "new image, idle"
REFERENCE = f"{SEGMENT_ANYTHING} float32"
RATIO, FASTEST = f"{REFERENCE} / this", "ours, fastest"
DTYPES = {"ours": ("float32", "bfloat16", "int8"), "baseline": ("float32", "bfloat16")}


def run(bench: Bench) -> list[Line]:
    """Measure in turns; skips precisions that a checkout does not have."""
    with tempfile.TemporaryDirectory(prefix="samclip-bench-") as folder, ExitStack() as stack:
        calls = {REFERENCE: stack.enter_context(process(SEGMENT_ANYTHING, "float32"))}
        ours, theirs = Path(folder) / "ours", Path(folder) / "baseline"
        random_vit_b.make(ours)
        shutil.copytree(ours, theirs)
        _export(ours)
        calls |= _loaded(bench, stack, "ours", ours, ROOT)
        if bench.baseline:
            calls |= _loaded(bench, stack, "baseline", theirs, bench.baseline)
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(bench.rounds + 1):
            bench.log(f"round {number}" if number else "warm-up")
            for name, call in calls.items():
                taken[name].append(call("new_image", 0, 1)["ms"][0] / 1000)
    lines = [Line(TABLE, ROW, name, "s", seconds[1:]) for name, seconds in taken.items()]
    fastest = min((line for line in lines if "ours" in line.column), key=lambda line: line.median)
    compared = {line.column: line for line in lines[1:]} | {FASTEST: fastest}
    return [*lines, *(ratio(RATIO, name, lines[0], line) for name, line in compared.items())]


def _loaded(
    bench: Bench, stack: ExitStack, name: str, directory: Path, root: Path
) -> Iterator[tuple[str, Call]]:
    for dtype in DTYPES[name]:
        try:
            yield f"{name} {dtype}", stack.enter_context(process(directory, dtype, root))
        except RuntimeError as error:
            bench.log(f"skipped: {name} {dtype}: {error}")


def _export(directory: Path) -> None:
    """Export graphs in float32 and int8, calibrated with a few photographs."""
    with tempfile.TemporaryDirectory(prefix="samclip-bench-") as folder:
        write_files(Path(folder), 8)
        command = [sys.executable, "-m", "samclip.cli", "export", str(directory)]
        subprocess.run([*command, "--calibrate", folder], check=False)
