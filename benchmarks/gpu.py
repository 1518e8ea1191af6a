"""Part ``gpu``: ``vit-b`` with random weights against segment_anything, and served on a GPU."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks import traffic
from benchmarks.bench import Bench
from benchmarks.lines import Line, ratio
from benchmarks.load import Job
from benchmarks.service import running
from samclip_core.config import VIT_B, ClipHeadConfig
from tests import tiny

TABLE, SERVED, RATE = "`vit-b` on a GPU", "served, %d clients", "images"
BATCH, LOWER = 8, "bfloat16"
CLIENTS = (1, 8, 32, 64)


def run(bench: Bench) -> list[Line]:
    import torch

    if not torch.cuda.is_available():
        bench.log("skipped: torch finds no GPU")
        return []
    with tempfile.TemporaryDirectory(prefix="samclip-bench-") as folder:
        directory = Path(folder) / "vit-b"
        # Random weights of SAM's size, a small text tower, no CLIP layers.
        sizes = replace(VIT_B, clip_head=ClipHeadConfig(layers=0), task_sizes=None)
        own = {"text": tiny.TINY["vit-b"].text, "text_dim": tiny.TINY["vit-b"].text.width}
        tiny.make_tiny_checkpoint(directory, **(vars(sizes) | own))
        lines = _encoders(directory, bench.rounds)
        with running(directory, DEVICE="cuda", DTYPE=LOWER) as service:
            for clients in CLIENTS:
                job = Job(service.http, "new", clients, bench.seconds)
                rates = [bench.load(job).rate for _ in range(bench.rounds)]
                lines.append(Line(TABLE, SERVED % clients, RATE, "/s", rates))
    return lines


def _encoders(directory: Path, rounds: int) -> list[Line]:
    """Measure batches in turns; ours includes all of the service's work on the device."""
    import torch
    from segment_anything import sam_model_registry

    from samclip_core import SamClip

    encoder = sam_model_registry["vit_b"]().image_encoder.cuda().eval()
    pixels = torch.zeros(BATCH, 3, 1024, 1024, device="cuda")
    model = SamClip.load(directory, device="cuda", dtype=LOWER)
    prepared = [model.prepare(traffic.photograph(number)) for number in range(BATCH)]
    calls: dict[str, Callable[[], object]] = {
        f"ours {LOWER}, batches of {BATCH}": lambda: model.encode_batch(prepared),
        f"segment_anything float32, batches of {BATCH}": lambda: encoder(pixels),
    }
    rates: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for _ in range(rounds + 1):
            for name, call in calls.items():
                torch.cuda.synchronize()
                begin = time.perf_counter()
                call()
                torch.cuda.synchronize()
                rates[name].append(BATCH / (time.perf_counter() - begin))
    ours, theirs = (
        Line(TABLE, name, RATE, "/s", per_round[1:]) for name, per_round in rates.items()
    )
    return [ours, theirs, ratio(ours.row, "against segment_anything", ours, theirs)]
