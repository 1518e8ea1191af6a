"""Part ``start``: seconds until the service is ready, and its memory while idle.

The service runs in an environment with only the packages that ``make serve`` installs, because Ray
imports optional packages if they are present. ``--quick`` uses the current environment.
"""

import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.lines import Line
from benchmarks.service import running
from tests.checkout import ROOT

TABLE = "start of the service"


def run(bench: Bench) -> list[Line]:
    """Measure first starts, without compiled models, and second starts, with those of the first."""
    python = sys.executable if bench.quick else _installed(bench, ROOT)
    other = _installed(bench, bench.baseline.resolve()) if bench.baseline else python
    seconds, memory = defaultdict(list), defaultdict(list)
    for number in range(bench.rounds):
        bench.log(f"round {number + 1}")
        with tempfile.TemporaryDirectory(prefix="samclip-bench-") as folder:
            for which in ("first start", "second start"):
                with running(bench.directory, python, COMPILED_CACHE_DIR=folder) as service:
                    seconds[which, "ours"].append(service.ready_s)
                    memory["ours"].append(service.pss_bytes() / 1e9)
        if bench.baseline:
            with running("edge", other, bench.baseline.resolve()) as service:
                seconds["second start", "baseline"].append(service.ready_s)
                memory["baseline"].append(service.pss_bytes() / 1e9)
    return [
        *(Line(TABLE, f"ready, {which}", of, "s", s) for (which, of), s in seconds.items()),
        *(Line(TABLE, "memory, idle (PSS)", of, "GB", rounds) for of, rounds in memory.items()),
    ]


def _installed(bench: Bench, root: Path) -> str:
    """Return the interpreter of a checkout's own environment, created if absent."""
    home = (bench.out / f"serve-{root.name}").resolve()
    subprocess.run(["make", f"--directory={root}", f"VENV={home}", f"{home}/.serve"], check=True)
    return str(home / "bin" / "python")
