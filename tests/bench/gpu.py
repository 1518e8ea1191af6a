"""Part ``gpu``, where there is one: the encoder's images a second and its share of what the device
can multiply, by batch; and the service on the device from end to end.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from segment_anything import sam_model_registry

from samclip_core import SamClip
from tests.bench import machine, vit_b
from tests.bench.bench import Bench
from tests.bench.lines import Line, ratio
from tests.bench.load import Job
from tests.bench.service import running

BATCHES = (1, 2, 4, 8, 16)
CLIENTS = (1, 8, 32, 64)
LOWER = "bfloat16"


def run(bench: Bench) -> list[Line]:
    if not torch.cuda.is_available():
        return []
    with tempfile.TemporaryDirectory(prefix="samclip-bench-") as folder:
        directory = vit_b.make_checkpoint(Path(folder) / "vit-b")
        return [*_encoder(directory, bench.rounds), *_served(bench, directory)]


def sweep(
    name: str, seconds_of: Callable[[int], float], rounds: int, flop: float, peak: float
) -> list[Line]:
    """Images a second and share of ``peak`` (FLOP/s) at each batch; ``seconds_of`` runs one."""
    lines = []
    for batch in BATCHES:
        seconds_of(batch)  # warm-up, of this shape
        rates = [batch / seconds_of(batch) for _ in range(rounds)]
        lines.append(Line(f"{name}, batch {batch}", "/s", rates, True))
        shares = [100 * rate * flop / peak for rate in rates]
        lines.append(Line(f"{name}, batch {batch}: share of products", "%", shares, True))
    return lines


def _encoder(directory: Path, rounds: int) -> list[Line]:
    flop = vit_b.flops()
    lines, peaks = [], {}
    for dtype in ("float32", LOWER):
        peaks[dtype] = machine.gemm_rate(getattr(torch, dtype), "cuda")
        lines.append(Line(f"gpu products, {dtype}", "GFLOP/s", [peaks[dtype] / 1e9], True))
    reference = sam_model_registry["vit_b"]().image_encoder.cuda().eval()
    lines += sweep(
        "gpu segment_anything float32",
        lambda batch: _theirs(reference, batch),
        rounds,
        flop,
        peaks["float32"],
    )
    model = SamClip.load(directory, device="cuda", dtype=LOWER)
    name = f"gpu vit-b {LOWER}"
    lines += sweep(
        name, lambda batch: vit_b.encoder_seconds(model, batch), rounds, flop, peaks[LOWER]
    )
    return [*lines, _gain(lines, name)]


def _gain(lines: Sequence[Line], name: str) -> Line:
    found = {line.name: line for line in lines}
    ours, theirs = found[f"{name}, batch 8"], found["gpu segment_anything float32, batch 8"]
    return ratio("gpu ours / segment_anything float32, batch 8", ours, theirs, True)


@torch.inference_mode()
def _theirs(encoder: torch.nn.Module, batch: int) -> float:
    pixels = torch.zeros(batch, 3, 1024, 1024, device="cuda")
    torch.cuda.synchronize()
    return machine.timed(lambda: encoder(pixels), 0, "cuda")[0]


def _served(bench: Bench, directory: Path) -> list[Line]:
    lines = []
    with running(directory, DEVICE="cuda", DTYPE=LOWER) as service:
        for clients in CLIENTS:
            job = Job("grpc", service.grpc, "embed", clients=clients, seconds=bench.seconds)
            rates = [bench.load(job).rate for _ in range(bench.rounds)]
            lines.append(Line(f"gpu vit-b served, {clients} clients", "/s", rates, True))
    return lines
