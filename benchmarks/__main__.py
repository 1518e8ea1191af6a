"""``make bench``: compare the library with a baseline and the service with other servers.

Each part measures its contenders in turns, for several rounds, and compares only figures of one
run. Results are merged with those that earlier runs measured in other parts.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

from benchmarks import goals, machine, plots, report
from benchmarks.bench import Bench
from benchmarks.lines import Line, tables
from benchmarks.report import Report
from samclip_core.io import checkpoint

PARTS = {
    "library": "benchmarks.library",
    "runtimes": "benchmarks.runtimes",
    "start": "benchmarks.start",
    "cpu": "benchmarks.cpu",
    "peers": "benchmarks.side_by_side",
    "gpu": "benchmarks.gpu",
}


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # unwinds, so that services are stopped
    directory = checkpoint.resolve(args.checkpoint)
    path = args.out / "bench.json"
    name = {"name": directory.name, "digest": checkpoint.digest(directory)}
    found = Report.continued(path, name)
    for part in args.only:
        with ExitStack() as stack:  # stops a part's processes before the next part
            _measure(part, Bench(directory, args.out, stack, args.quick, args.baseline), found)
        found.write(path)
        print(f"\n{tables(found.parts[part])}\n", flush=True)
    print(goals.table(found.lines))
    print(f"\n{', '.join(map(str, [path, *plots.draw(found.lines, args.out)]))}")
    if args.results:
        report.refresh(report.RESULTS, found)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.replace("``", "")
    )
    parser.add_argument("--checkpoint", default="edge", help="bundled name or directory (edge)")
    names = ", ".join(PARTS)
    parser.add_argument(
        "--only",
        nargs="*",
        choices=PARTS,
        default=[*PARTS],
        metavar="PART",
        help=f"parts to run, of {names}; without PART: none",
    )
    parser.add_argument("--quick", action="store_true", help="one short round, for a first look")
    parser.add_argument(
        "--out", type=Path, default=Path("out/bench"), help="output folder (out/bench)"
    )
    parser.add_argument(
        "--baseline", type=Path, metavar="DIR", help="checkout of an older commit to compare with"
    )
    parser.add_argument("--results", action="store_true", help=f"update {report.RESULTS.name}")
    return parser


def _measure(part: str, bench: Bench, found: Report) -> None:
    print(f"{part} …", flush=True)
    load, begin = os.getloadavg()[0], time.perf_counter()
    run: Callable[[Bench], list[Line]] = import_module(PARTS[part]).run
    found.parts[part] = run(bench)
    found.facts[part] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.facts(),
        "baseline": _commit(bench.baseline) if bench.baseline else None,
        "load": load,
        "quick": bench.quick,
        "seconds": round(time.perf_counter() - begin),
    }


def _commit(directory: Path) -> str:
    command = ["git", "-C", str(directory), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
