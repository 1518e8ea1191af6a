"""Part ``model``: what each piece of the model costs in one process, and the encoder's share of
what this machine can multiply.
"""

import time
from collections.abc import Callable

import numpy as np
import torch

from samclip_core import Prompt, SamClip, masks, scores
from samclip_core.cores import one_core
from samclip_core.network import build
from samclip_core.sam_head import SamHead
from tests.bench import machine, traffic
from tests.bench.bare import CORES
from tests.bench.bench import Bench
from tests.bench.lines import Line, seen

BATCH = 8
MASKS, SIDE = 64, 1024


def run(bench: Bench) -> list[Line]:
    lines = pieces(bench, bench.rounds)
    return [*lines.values(), *_share(bench, lines)]


def pieces(bench: Bench, rounds: int) -> dict[str, Line]:
    """What each piece takes, in milliseconds, in turns."""
    cases = _cases(bench)
    samples: dict[str, list[list[float]]] = {name: [] for name in cases}
    each = 3 if bench.quick else 8
    for number in range(rounds + 1):
        for name, (call, times) in cases.items():
            taken = [_timed(call, number * each + i) / times for i in range(each)]
            samples[name].append(taken)
    lines = {name: seen(name, rounds[1:]) for name, rounds in samples.items()}  # first: warm-up
    for name, line in lines.items():
        if name.startswith("encode"):
            line.facts["dtype"] = "float32" if name.endswith("float32") else bench.dtype
    return lines


def _cases(bench: Bench) -> dict[str, tuple[Callable[[int], object], int]]:
    """What is called with the number of its turn, and how many answers one call gives."""
    model = bench.model
    exact = SamClip.load(bench.directory)
    with one_core():
        alone = SamHead.load(bench.directory)
    prepared = model.prepare(traffic.known(0))
    features = model.encode(prepared)
    text_LD = scores.class_embeddings(model.embed_text, traffic.LABELS, model.config.templates)
    pooled_D, scale = model.embed_image(features), model.config.logit_scale
    blobs = _blobs()
    return {
        "decode and resize": (lambda i: model.prepare(traffic.known(i)), 1),
        "encode, alone": (lambda i: model.encode_batch([prepared]), 1),
        "encode, one on each core": (lambda i: model.encode_batch([prepared] * CORES), CORES),
        "encode, batch of 8": (lambda i: model.encode_batch([prepared] * BATCH), BATCH),
        "encode, alone, float32": (lambda i: exact.encode_batch([prepared]), 1),
        "encode, batch of 8, float32": (lambda i: exact.encode_batch([prepared] * BATCH), BATCH),
        "decode a click": (
            lambda i: model.segment(features, [Prompt(points=(traffic.point(i),))], False),
            1,
        ),
        "decode a click, one thread": (
            lambda i: alone.segment(features, [Prompt(points=(traffic.point(i),))], False),
            1,
        ),
        "embed 6 labels": (lambda i: model.embed_text(traffic.LABELS), 1),
        "compare with 6 labels": (
            lambda i: scores.classify(pooled_D, text_LD, traffic.LABELS, scale, None),
            1,
        ),
        "RLE of 1024² masks, each of 64": (lambda i: [*map(masks.encode_rle, blobs)], MASKS),
    }


def _blobs() -> np.ndarray:
    """64 masks of 1024²: discs, as objects are, of all sizes."""
    y, x = np.mgrid[:SIDE, :SIDE]
    random = np.random.default_rng(0)
    circles = zip(random.uniform(0, SIDE, (MASKS, 2)), random.uniform(20, 400, MASKS), strict=True)
    return np.stack([np.hypot(x - cx, y - cy) < radius for (cx, cy), radius in circles])


def _timed(call: Callable[[int], object], number: int) -> float:
    begin = time.perf_counter()
    call(number)
    return 1000 * (time.perf_counter() - begin)


def _share(bench: Bench, lines: dict[str, Line]) -> list[Line]:
    """The ceilings of this machine, and what part of its own one each encoding reaches."""
    size = bench.model.config.image_size
    net = build(bench.model.config).eval()
    pixels, sizes = torch.zeros(1, 3, size, size), torch.tensor([[size, size]])
    work = machine.flops(lambda: net.encode(pixels, sizes))
    added = []
    for dtype in dict.fromkeys(("float32", bench.dtype)):
        rate = machine.gemm_rate(getattr(torch, dtype))
        added.append(Line(f"products of matrices, {dtype}", "GFLOP/s", [rate / 1e9], True))
        for line in lines.values():
            if line.facts.get("dtype") == dtype:
                shares = [100 * work / (ms / 1000) / rate for ms in line.rounds]
                name, facts = f"{line.name}: share of products", {"gflop": work / 1e9}
                added.append(Line(name, "%", shares, True, facts=facts))
    return added
