"""Part ``library``: library calls on an idle machine and beside one busy core.

The library and the baseline run in separate processes and are measured in turns.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from subprocess import PIPE
from typing import Any

from benchmarks import in_process, traffic
from benchmarks.bench import Bench
from benchmarks.lines import Line, ratio
from tests.checkout import ROOT, sources

FILES = 40
OURS, REFERENCE = "ours", "baseline float32"
TABLE = "`edge` in the library"
EVERYTHING = '"everything" of 451×300, idle'
COMPARED = ("baseline float32 / ours", "baseline's best / ours")
Call = Callable[..., dict[str, Any]]  # (name, seconds, least number of calls)
Samples = dict[tuple[str, str], list[float]]  # milliseconds per round, by row and contender


@contextmanager
def busy_core() -> Iterator[None]:
    """Keep one core busy in another process until the end of the block."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


STATES = {"idle": nullcontext, "beside one busy core": busy_core}


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
    lines = [Line(TABLE, row, name, "ms", rounds) for (row, name), rounds in samples.items()]
    return [*lines, *compared(lines)]


def _round(calls: Mapping[str, Call], seconds: float) -> Iterator[tuple[tuple[str, str], float]]:
    for state, load in STATES.items():
        with load():
            for what in ("new image", "click"):
                for name, call in calls.items():
                    ms = call(what.replace(" ", "_"), seconds, 3)["ms"]
                    yield (f"{what}, {state}", name), statistics.median(ms)
    for name, call in calls.items():
        yield (EVERYTHING, name), call("everything", 0, 1)["ms"][0]


def compared(lines: list[Line]) -> Iterator[Line]:
    """Yield our speed-up over the baseline's float32 and over its faster precision."""
    for row in dict.fromkeys(line.row for line in lines):
        by_name = {line.column: line for line in lines if line.row == row}
        ours = by_name.pop(OURS)
        if REFERENCE in by_name:
            best = min(by_name.values(), key=lambda line: line.median)
            for name, theirs in zip(COMPARED, (by_name[REFERENCE], best), strict=True):
                yield ratio(row, name, theirs, ours)


@contextmanager
def process(checkpoint: Path | str, dtype: str, root: Path = ROOT) -> Iterator[Call]:
    """Load the library at ``root``. Raises RuntimeError if that fails."""
    from skimage import data

    with tempfile.TemporaryDirectory(prefix="samclip-bench-") as folder:
        for number in range(FILES):
            Path(folder, f"{number}.jpg").write_bytes(traffic.photograph(number))
        Path(folder, "everything.jpg").write_bytes(traffic.jpeg(data.chelsea()))  # 451×300
        command = [sys.executable, "-P", in_process.__file__, str(checkpoint), dtype, folder]
        environment = os.environ | {"PYTHONPATH": sources(root.resolve())}
        with subprocess.Popen(
            command, env=environment, cwd=folder, stdin=PIPE, stdout=PIPE, text=True
        ) as library:

            def ask(*question: Any) -> Any:
                library.stdin.write(json.dumps(question) + "\n")
                library.stdin.flush()
                line = library.stdout.readline()
                if not line:
                    raise RuntimeError(f"{command} exited without an answer")
                return json.loads(line)

            print(f"  loaded from {root.resolve().name}: {ask()}", flush=True)
            yield ask
