"""``make bench``: compare the library with a baseline and the service with other servers.

Each part measures its contenders in turns, for several rounds, and compares only figures of one
run. Results are merged with those that earlier runs measured in other parts.
"""

import argparse
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.bench import Bench
from benchmarks.lines import Line, tables
from benchmarks.report import Report
from samclip_core.io import checkpoint

PARTS = ("library", "runtimes", "start", "cpu", "peers", "gpu")  # modules of this package
INSTRUCTIONS = ("avx2", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # unwinds, so that services are stopped
    directory = checkpoint.resolve(args.checkpoint)
    path = args.out / "bench.json"
    name = {"name": directory.name, "digest": checkpoint.digest(directory)}
    results = Report.continued(path, name)
    for part in args.only:
        with ExitStack() as stack:  # stops a part's processes before the next part
            _measure(part, Bench(directory, args.out, stack, args.quick, args.baseline), results)
        results.write(path)
        print(f"\n{tables(results.parts[part])}\n", flush=True)
    print(f"{report.goals(results.lines)}\n\n{path}")
    if args.results:
        results.refresh(report.RESULTS)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.replace("``", "")
    )
    add = parser.add_argument
    add("--checkpoint", default="edge", help="bundled name or directory (edge)")
    parts = f"parts to run, of {', '.join(PARTS)}; without PART: none"
    add("--only", nargs="*", choices=PARTS, default=PARTS, metavar="PART", help=parts)
    add("--quick", action="store_true", help="one short round, for a first look")
    add("--out", type=Path, default=Path("out/bench"), help="output folder (out/bench)")
    older = "checkout of an older commit to compare with"
    add("--baseline", type=Path, metavar="DIR", help=older)
    add("--results", action="store_true", help=f"update {report.RESULTS.name}")
    return parser


def _measure(part: str, bench: Bench, results: Report) -> None:
    print(f"{part} …", flush=True)
    load, begin = os.getloadavg()[0], time.perf_counter()
    run: Callable[[Bench], list[Line]] = import_module(f"benchmarks.{part}").run
    results.parts[part] = run(bench)
    results.facts[part] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "baseline": _commit(bench.baseline) if bench.baseline else None,
        "load": load,
        "quick": bench.quick,
        "seconds": round(time.perf_counter() - begin),
    }


def _machine() -> dict[str, Any]:
    """Return facts about this machine; the processor's are known on Linux alone."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    values = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    return {
        "processor": values.get("model name", platform.processor()),
        "cores": len(affinity) or os.cpu_count() or 1,
        "instructions": [i for i in INSTRUCTIONS if i in values.get("flags", "").split()],
    }


def _commit(directory: Path) -> str:
    command = ["git", "-C", str(directory), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
