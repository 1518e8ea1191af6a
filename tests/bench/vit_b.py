"""Part ``vit-b``: SAM's own encoder at 1024 pixels, with random weights: speed does not depend on
them. segment_anything's, as it is published, is the reference. Seconds an image, so few rounds.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from segment_anything import sam_model_registry

from samclip_core import SamClip, checkpoint
from samclip_core.config import VIT_B
from samclip_core.network import build
from samclip_core.text import build_text_encoder
from tests import tiny
from tests.bench import machine
from tests.bench.bench import Bench
from tests.bench.lines import Line, ratio

DTYPES = ("float32", "bfloat16")


def run(bench: Bench) -> list[Line]:
    """In turns: theirs and ours, in both precisions."""
    rounds = 1 if bench.quick else 2
    work = flops()
    with tempfile.TemporaryDirectory(prefix="samclip-bench-") as folder:
        cases = _cases(make_checkpoint(Path(folder) / "vit-b"))
    taken: dict[str, list[float]] = {name: [] for name in cases}
    rates: dict[str, list[float]] = {dtype: [] for dtype in DTYPES}
    for number in range(rounds + 1):  # the first one warms up
        for dtype in DTYPES:
            rates[dtype].append(machine.gemm_rate(getattr(torch, dtype)) / 1e9)
        for name, call in cases.items():
            bench.log(f"  {name}, round {number}")
            taken[name].append(call())
    lines = {name: Line(name, "s", seconds[1:]) for name, seconds in taken.items()}
    ceilings = [
        Line(f"products of matrices, {dtype}", "GFLOP/s", rates[dtype], True) for dtype in DTYPES
    ]
    return [*lines.values(), *ceilings, *_comparisons(lines, rates, work)]


def _comparisons(lines: dict[str, Line], rates: dict[str, list[float]], work: int) -> list[Line]:
    compared = []
    for name, line in lines.items():
        dtype = name.rpartition(", ")[2]
        shares = [
            100 * work / 1e9 / seconds / rate
            for seconds, rate in zip(line.rounds, rates[dtype][1:], strict=True)
        ]
        facts = {"gflop": work / 1e9}
        compared.append(Line(f"{name}: share of products", "%", shares, True, facts=facts))
    theirs = lines["segment_anything, float32"]
    for dtype in DTYPES:
        ours = lines[f"ours, {dtype}"]
        compared.append(ratio(f"segment_anything float32 / ours {dtype}", theirs, ours, True))
    return compared


def make_checkpoint(directory: Path) -> Path:
    """SAM's size with random weights, and a small text tower: nobody asks it anything."""
    text = tiny.TINY["vit-b"].text
    config = replace(VIT_B, name="random-vit-b", text=text, text_dim=text.width)
    text_encoder = build_text_encoder(text, tiny.tokenizer_json())
    checkpoint.save(directory, build(config).eval(), text_encoder, config, {}, card="# Random\n")
    return directory


def flops() -> int:
    """Of segment_anything's encoder for one image, counted without computing it."""
    with torch.device("meta"):
        encoder = sam_model_registry["vit_b"]().image_encoder
        return machine.flops(lambda: encoder(torch.zeros(1, 3, 1024, 1024)))


def _cases(directory: Path) -> dict[str, Callable[[], float]]:
    """Seconds of one image's encoding each."""
    encoder = sam_model_registry["vit_b"]().image_encoder.eval()
    pixels = torch.zeros(1, 3, 1024, 1024)
    cases: dict[str, Callable[[], float]] = {}
    for dtype in DTYPES:
        lower = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")
        cases[f"segment_anything, {dtype}"] = partial(_theirs, encoder, pixels, lower)
    for dtype in DTYPES:
        model = SamClip.load(directory, dtype=dtype)
        cases[f"ours, {dtype}"] = partial(encoder_seconds, model)
    return cases


@torch.inference_mode()
def _theirs(
    encoder: torch.nn.Module, pixels: torch.Tensor, lower: AbstractContextManager[object]
) -> float:
    begin = time.perf_counter()
    with lower:
        encoder(pixels)
    return time.perf_counter() - begin


def encoder_seconds(model: SamClip, batch: int = 1) -> float:
    """Of the image encoder alone, in an encoding as the service runs it, the CLIP head left out."""
    prepared = model.prepare(np.zeros((1024, 1024, 3), np.uint8))
    encoder, times = model.net.image_encoder, list[float]()

    def note(*_: object) -> None:
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter())

    hooks = [encoder.register_forward_pre_hook(note), encoder.register_forward_hook(note)]
    try:
        model.encode_batch([prepared] * batch)
    finally:
        for hook in hooks:
            hook.remove()
    begin, end = times
    return end - begin
