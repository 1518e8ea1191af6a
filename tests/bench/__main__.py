"""``make bench``: what each part costs, by itself and served, in one run on one machine.

Every round runs every case once, so that a machine that gets slower slows all of them. Times are
medians over the rounds; ratios only compare what stands in the same run.
"""

import argparse
import json
import platform
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import torch
from tqdm import tqdm

from samclip_core import SamClip, checkpoint
from tests.bench.cases import Case, Photographs, in_process, over_grpc, over_http
from tests.e2e.conftest import start

WARM_UP = 3  # rounds that are not counted
RATIOS = {
    "a new image over gRPC / the library's call": ("gRPC classify, new image", "library classify"),
    "a known image over gRPC / a new one": (
        "gRPC classify, known image",
        "gRPC classify, new image",
    ),
    "a click on a known image / on a new one": ("gRPC click, known image", "gRPC click, new image"),
    "each of 8 at once over gRPC / one alone": (
        "gRPC classify, new images at once",
        "gRPC classify, new image",
    ),
    "each in a batch of 8 / encoded alone": ("model encode, batch", "model encode"),
    "HTTP / gRPC, a new image": ("HTTP classify, new image", "gRPC classify, new image"),
    "HTTP / gRPC, a click on a known image": ("HTTP click, known image", "gRPC click, known image"),
}


@dataclass(frozen=True)
class Result:
    """Milliseconds for one."""

    group: str
    name: str
    median_ms: float
    p10_ms: float
    p90_ms: float


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__.replace("``", "")
    )
    parser.add_argument("--checkpoint", default="edge", help="bundled name or directory (edge)")
    parser.add_argument("--rounds", type=int, default=20, help="(20)")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="(out/bench)")
    args = parser.parse_args(argv)
    directory = checkpoint.resolve(args.checkpoint)
    with ExitStack() as stack:
        results = measure(all_cases(directory, stack), args.rounds)
    median = {f"{r.group} {r.name}": r.median_ms for r in results}
    ratios = {what: median[above] / median[below] for what, (above, below) in RATIOS.items()}
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "checkpoint": {"name": args.checkpoint, "digest": checkpoint.digest(directory)},
        "rounds": args.rounds,
        "results": [vars(result) for result in results],
        "ratios": ratios,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "bench.json").write_text(json.dumps(report, indent=2) + "\n")
    plot(results, args.out / "bench.png", report["machine"])
    print(table(results, ratios))
    print(f"\n{args.out / 'bench.json'}, {args.out / 'bench.png'}")
    return 0


def all_cases(directory: Path, stack: ExitStack) -> list[Case]:
    """The cases, and the service that some of them need until ``stack`` is closed."""
    photos = Photographs()
    model = SamClip.load(directory)
    print("starting a service …", flush=True)
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="samclip-bench-"))
    service = start(Path(folder), str(directory))
    stack.callback(service.stop, signal.SIGTERM)
    channel = stack.enter_context(grpc.insecure_channel(service.address))
    client = stack.enter_context(httpx.Client(base_url=service.url, timeout=120))
    return [
        *in_process(model, photos),
        *over_grpc(channel, photos),
        *over_http(client, photos),
    ]


def measure(cases: Sequence[Case], rounds: int) -> list[Result]:
    """Run every case once a round, the warm-up's rounds uncounted."""
    times_RC = np.empty((WARM_UP + rounds, len(cases)))
    for number in tqdm(range(WARM_UP + rounds), desc="rounds"):
        for place, case in enumerate(cases):
            begin = time.perf_counter()
            case.call(number)
            times_RC[number, place] = (time.perf_counter() - begin) * 1000 / case.times
    spread_3C = np.percentile(times_RC[WARM_UP:], [50, 10, 90], axis=0)
    return [
        Result(case.group, case.name, *map(float, spread_3C[:, place]))
        for place, case in enumerate(cases)
    ]


def machine() -> dict[str, Any]:
    """What the times depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": len(models) or None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def table(results: Sequence[Result], ratios: dict[str, float]) -> str:
    lines = [f"{'':38}{'median':>9}{'p10':>9}{'p90':>9}  ms each"]
    for r in results:
        label = f"{r.group:9}{r.name}"
        lines.append(f"{label:38}{r.median_ms:9.2f}{r.p10_ms:9.2f}{r.p90_ms:9.2f}")
    lines += ["", f"{'ratios of medians':46}"]
    return "\n".join(lines + [f"{what:46}{ratio:10.2f}" for what, ratio in ratios.items()])


def plot(results: Sequence[Result], path: Path, made_on: dict[str, Any]) -> None:
    """Bars of the medians, with the middle four fifths of the rounds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = list(dict.fromkeys(r.group for r in results))
    medians = [r.median_ms for r in results]
    below = [r.median_ms - r.p10_ms for r in results]
    above = [r.p90_ms - r.median_ms for r in results]
    figure, axes = pyplot.subplots(figsize=(9, 0.34 * len(results) + 1.4), layout="constrained")
    axes.barh(
        [f"{r.name}  ({r.group})" for r in results],
        medians,
        xerr=[below, above],
        color=[f"C{groups.index(r.group)}" for r in results],
        error_kw={"linewidth": 0.8},
    )
    for row, value in enumerate(medians):
        axes.annotate(f" {value:.3g}", (results[row].p90_ms, row), va="center", fontsize=8)
    axes.set(xscale="log", xlabel="milliseconds each: median, and 10th to 90th percentile")
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set_title(f"{made_on['processor']}, {made_on['cores']} cores", fontsize=9)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    raise SystemExit(main())
