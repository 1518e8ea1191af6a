"""``make bench``: what each part costs, by itself and served, measured on one machine.

Each part measures in rounds, and compares only what stands in the same run of it. What is measured
is kept with what earlier runs have measured of the other parts.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

from samclip_core import checkpoint, use_cores
from services.instance import COMPUTING
from tests.bench import costs, plots, report
from tests.bench.bench import Bench
from tests.bench.lines import Line
from tests.bench.report import Report

PARTS = {
    "model": "tests.bench.model",
    "latency": "tests.bench.latency",
    "throughput": "tests.bench.throughput",
    "saturation": "tests.bench.saturation",
    "open-loop": "tests.bench.open_loop",
    "masks": "tests.bench.many_masks",
    "footprint": "tests.bench.footprint",
    "replicas": "tests.bench.replicas",
    "cache": "tests.bench.cache",
    "unique": "tests.bench.unique",
    "peers": "tests.bench.peers",
    "plan": "tests.bench.plan",
    "gpu": "tests.bench.gpu",
    "vit-b": "tests.bench.vit_b",
    "hits": "tests.bench.hits",
}
ONLY_BY_NAME = {"unique", "vit-b", "hits"}  # many minutes; an encoder that a CPU seldom serves


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that services are ended as well
    directory = checkpoint.resolve(args.checkpoint)
    path = args.out / "bench.json"
    name = {"name": directory.name, "digest": checkpoint.digest(directory)}
    found = Report.continued(path, name)
    chosen = args.only
    if chosen is None:
        chosen = [part for part in PARTS if part not in ONLY_BY_NAME]
    for part in chosen:
        with ExitStack() as stack:  # what a part has started does not run beside the next one
            bench = Bench(directory, args.out, stack, args.quick)
            try:
                _measure(part, bench, found)
            finally:  # what it had measured when it was told to end is worth keeping
                found.write(path, costs.of(found))
    print(report.text({part: found.parts[part] for part in chosen}))
    pictures = plots.draw(found, args.out)
    print(f"\n{', '.join(map(str, [path, *pictures]))}")
    if args.results:
        report.refresh(report.RESULTS, found)
    if args.compare:
        return _compare(found, Report.read(args.compare), chosen)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__.replace("``", "")
    )
    parser.add_argument("--checkpoint", default="edge", help="bundled name or directory (edge)")
    names = ", ".join(PARTS)
    parser.add_argument(
        "--only", nargs="*", choices=PARTS, metavar="PART", help=f"of {names}; alone: none"
    )
    parser.add_argument("--quick", action="store_true", help="few, short rounds: a look")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="(out/bench)")
    parser.add_argument(
        "--compare", type=Path, metavar="OLD.json", help="fail where a figure is worse than there"
    )
    parser.add_argument("--results", action="store_true", help=f"renew {report.RESULTS.name}")
    return parser


def _measure(part: str, bench: Bench, found: Report) -> None:
    from tests.bench import machine  # which brings in torch, as the parts do

    print(f"{part} …", flush=True)
    begin = time.perf_counter()
    run: Callable[[Bench], Iterable[Line]] = import_module(PARTS[part]).run
    found.parts[part] = []
    found.facts[part] = {
        "part": part,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.facts(),
        "quick": bench.quick,
    }
    for line in run(bench):
        found.parts[part].append(line)
    found.facts[part]["seconds"] = round(time.perf_counter() - begin)


def _compare(new: Report, old: Report, chosen: Sequence[str]) -> int:
    measured = Report(new.checkpoint, {part: new.parts[part] for part in chosen})
    found = report.worse(measured, old)
    print("\n".join(["", "worse than before:", *found] if found else ["", "nothing is worse"]))
    return 1 if found else 0


if __name__ == "__main__":
    if not COMPUTING.items() <= os.environ.items():  # what is compared computes as the service does
        os.execve(sys.executable, sys.orig_argv, os.environ | COMPUTING)
    use_cores()
    sys.exit(main())
