"""Part ``library``: library calls on an idle machine and beside one busy core.

The library and the baseline run in separate processes and are measured in turns.
"""

import os
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from benchmarks import in_process, traffic, worker
from benchmarks.bench import Bench
from benchmarks.lines import Line, ratio
from benchmarks.machine import busy_core
from tests.checkout import ROOT, sources

FILES = 40
OURS, REFERENCE = "ours", "baseline float32"
TABLE = "`edge` in the library"
EVERYTHING = '"everything" of 451×300, idle'
COMPARED = ("baseline float32 / ours", "baseline's best / ours")
STATES = {"idle": nullcontext, "beside one busy core": busy_core}
Call = Callable[..., dict[str, Any]]  # (name, seconds, least number of calls)
Samples = dict[tuple[str, str], list[float]]  # milliseconds per round, by row and contender


def run(bench: Bench) -> list[Line]:
    with ExitStack() as stack:
        calls = {OURS: stack.enter_context(process(bench.directory, bench.dtype))}
        for dtype in ("float32", "bfloat16") if bench.baseline else ():
            name = f"baseline {dtype}"
            calls[name] = stack.enter_context(process("edge", dtype, bench.baseline))
        samples: Samples = defaultdict(list)
        for number in range(bench.rounds + 1):
            bench.log(f"round {number}" if number else "warm-up")
            taken = dict(_round(calls, bench.seconds / 2))
            for key, ms in taken.items() if number else ():
                samples[key].append(ms)
    return [*_lines(samples), *compared(_lines(samples))]


def _round(calls: Mapping[str, Call], seconds: float) -> Iterator[tuple[tuple[str, str], float]]:
    for state, load in STATES.items():
        with load():
            for what in ("new image", "click"):
                for name, call in calls.items():
                    found = call(what.replace(" ", "_"), seconds, 3)["ms"]
                    yield (f"{what}, {state}", name), statistics.median(found)
    for name, call in calls.items():
        yield (EVERYTHING, name), call("everything", 0, 1)["ms"][0]


def _lines(samples: Samples) -> list[Line]:
    return [Line(TABLE, row, name, "ms", rounds) for (row, name), rounds in samples.items()]


def compared(lines: list[Line]) -> list[Line]:
    """Return our speed-up over the baseline's float32 and over its faster precision."""
    found = []
    for row in dict.fromkeys(line.row for line in lines):
        by_name = {line.column: line for line in lines if line.row == row}
        ours = by_name.pop(OURS)
        if REFERENCE in by_name:
            best = min(by_name.values(), key=lambda line: line.median)
            for name, theirs in zip(COMPARED, (by_name[REFERENCE], best), strict=True):
                found.append(ratio(row, name, theirs, ours))
    return found


@contextmanager
def process(checkpoint: Path | str, dtype: str, root: Path | None = None) -> Iterator[Call]:
    """Load the library at ``root`` (default: this one). Raises RuntimeError if that fails."""
    root = (root or ROOT).resolve()
    with tempfile.TemporaryDirectory(prefix="samclip-bench-") as folder:
        write_files(Path(folder))
        command = [sys.executable, "-P", in_process.__file__, str(checkpoint), dtype, folder]
        environment = os.environ | {"PYTHONPATH": sources(root)}
        with worker.running(command, env=environment, cwd=folder) as ask:
            print(f"  loaded from {root.name}: {ask(None)}", flush=True)
            yield lambda name, seconds, least: ask([name, seconds, least])


def write_files(folder: Path, number_of_files: int = FILES) -> None:
    from skimage import data

    for number in range(number_of_files):
        (folder / f"{number}.jpg").write_bytes(traffic.photograph(number))
    (folder / "everything.jpg").write_bytes(traffic.jpeg(data.chelsea()))  # 451×300
