"""Run mixed traffic for long, and report growth (``make soak``).

The report covers private memory, open files and threads of every process of the service, and its
latencies. Growth is measured after a warm-up.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from samclip_core import SamClip
from samclip_core.io import checkpoint
from tests import redis_server
from tests.e2e.conftest import Service, start
from tests.faults.load import Load, Pictures, Questions

WARM_UP = 0.3  # fraction of the run
SAMPLES = 60  # per run, at least 2 s apart
GROWTH = 0.02  # allowed growth of memory after the warm-up
NOISE_BYTES = 4 * 2**20  # allocators take and return memory in such steps
MIB = 2**20
FILES, THREADS = 8, 4  # allowed growth after the warm-up
EVICTING = ("--maxmemory-policy", "volatile-lru")


@dataclass
class Grown:
    """A process and its samples (seconds, bytes, open files, threads)."""

    name: str
    samples: list[tuple[float, int, int, int]] = field(default_factory=list)

    def after(self, warm_up_s: float) -> np.ndarray:
        return np.array([sample for sample in self.samples if sample[0] >= warm_up_s], float)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=__doc__.replace("``", "")
    )
    parser.add_argument("--minutes", type=float, default=30, help="(30)")
    parser.add_argument("--out", type=Path, default=Path("out/soak"), help="(out/soak)")
    args = parser.parse_args(argv)
    seconds = args.minutes * 60
    with tempfile.TemporaryDirectory(prefix="samclip-soak-") as folder:
        directory = Path(folder)
        with redis_server.running(directory, "--maxmemory", "64mb", *EVICTING) as store:
            # Small caches are full, and evict entries, long before the warm-up ends.
            service = start(
                directory,
                str(checkpoint.resolve("edge")),
                DTYPE="float32",  # as in the library, whose answers it must give
                REDIS_URL=store.url,
                CACHE_BYTES=16 * MIB,
                HEAD_CACHE_BYTES=4 * MIB,
            )
            try:
                processes, load = asyncio.run(_soak(service, seconds))
            finally:
                service.stop()
    table, sound = report(processes, load, seconds)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "soak.md").write_text(table)
    print(table)
    return 0 if sound else 1


async def _soak(service: Service, seconds: float) -> tuple[list[Grown], Load]:
    found: dict[int, Grown] = {}
    pause_s = max(2.0, seconds / SAMPLES)
    async with Load(
        Questions(service, Pictures(SamClip.load("edge", dtype="float32")), "soak")
    ) as load:
        while (now := time.monotonic() - load.fault_at) < seconds:
            await asyncio.to_thread(_sample, service, found, now)
            await asyncio.sleep(pause_s)
    return list(found.values()), load


def _sample(service: Service, found: dict[int, Grown], now: float) -> None:
    for pid in service.processes():
        try:
            process = psutil.Process(pid)
            grown = found.setdefault(pid, Grown(_name(process)))
            memory = process.memory_full_info().uss
            grown.samples.append((now, memory, process.num_fds(), process.num_threads()))
        except psutil.NoSuchProcess:
            continue


def _name(process: psutil.Process) -> str:
    """Return the name of a replica's application, or of the script, module or program."""
    words = process.cmdline() or [process.name()]
    if words[0].startswith("ray::"):
        return words[0].removeprefix("ray::").rpartition(":")[2]
    if "-m" in words:
        return words[words.index("-m") + 1]
    return next((Path(word).stem for word in words if word.endswith(".py")), process.name())


def report(processes: Sequence[Grown], load: Load, seconds: float) -> tuple[str, bool]:
    """Return the tables, and whether nothing grew, failed or was wrong."""
    warm_up_s = WARM_UP * seconds
    lines = [
        f"{seconds / 60:.0f} minutes, of which the first {warm_up_s / 60:.1f} are the warm-up.",
        "",
        "| process | MiB | growth | open files | threads |",
        "|---|---|---|---|---|",
    ]
    sound = True
    for process in processes:
        samples = process.after(warm_up_s)
        if len(samples) < 10:  # a short-lived process, or a proxy of an earlier configuration
            continue
        first, grown = line(samples[:, 0], samples[:, 1])
        leaks = grown > max(GROWTH * first, NOISE_BYTES)
        files, threads = (f"{c[0]:.0f} → {c[-1]:.0f}" for c in (samples[:, 2], samples[:, 3]))
        more_files = line(samples[:, 0], samples[:, 2])[1] > FILES
        more_threads = line(samples[:, 0], samples[:, 3])[1] > THREADS
        sound &= not (leaks or more_files or more_threads)
        growth = f"{grown / MIB:+.1f} MiB ({grown / first:+.1%}){', too much' if leaks else ''}"
        lines.append(f"| {process.name} | {first / MIB:.0f} | {growth} | {files} | {threads} |")
    failures, wrong = load.failures(), load.wrong()
    sound &= not failures and not wrong and not load.lost
    return "\n".join([*lines, "", *_latencies(load, seconds)]) + "\n", sound


def line(seconds_N: np.ndarray, values_N: np.ndarray) -> tuple[float, float]:
    """Fit a line with the Theil-Sen estimator; return its start and its total rise.

    The slope is the median over all pairs of samples, so outliers do not move it.
    """
    i, j = np.triu_indices(len(seconds_N), 1)
    slope = np.median((values_N[j] - values_N[i]) / (seconds_N[j] - seconds_N[i]))
    start = np.median(values_N - slope * (seconds_N - seconds_N[0]))
    return float(start), float(slope * (seconds_N[-1] - seconds_N[0]))


def _latencies(load: Load, seconds: float) -> list[str]:
    """Return the table of latencies in the first and last third after the warm-up."""
    start, end = load.fault_at + WARM_UP * seconds, load.fault_at + seconds
    third = (end - start) / 3
    lines = ["| kind | requests | p50, early → late | p95, early → late |", "|---|---|---|---|"]
    for kind, attempts in load.attempts.items():
        early = [1000 * (a.done - a.sent) for a in attempts if start <= a.sent < start + third]
        late = [1000 * (a.done - a.sent) for a in attempts if end - third <= a.sent < end]
        cells = [
            f"{np.percentile(early, q):.0f} → {np.percentile(late, q):.0f} ms" for q in (50, 95)
        ]
        lines.append(f"| {kind} | {len(attempts)} | {' | '.join(cells)} |")
    totals = f"{load.wrong()} wrong, {load.lost} lost writes, failures: {load.failures() or 'none'}"
    return [*lines, "", totals]


if __name__ == "__main__":
    sys.exit(main())
