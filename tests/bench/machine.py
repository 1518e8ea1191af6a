"""What the figures depend on: the machine, and the fastest that it multiplies matrices."""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

SIDES = (1024, 2048, 3072)
CEILING_S = 1.5  # seconds to look for the ceiling of one dtype


def facts() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    flags = next(
        (line.partition(": ")[2].split() for line in lines if line.startswith("flags")), []
    )
    vector = [flag for flag in flags if flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "vector": vector,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def gemm_rate(dtype: torch.dtype, device: str = "cpu", seconds: float = CEILING_S) -> float:
    """FLOP a second of the best product of two square matrices: what nothing runs faster than."""
    best = 0.0
    for side in SIDES if device == "cpu" else (4096, 8192):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        taken = timed(lambda a=a, b=b: a @ b, seconds / len(SIDES), device)
        best = max(best, 2 * side**3 / min(taken))
    return best


def timed(call: Callable[[], object], seconds: float, device: str = "cpu") -> list[float]:
    """Seconds of each call, for about so long and at least three; the first is not counted."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < 4 or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    return taken[1:]


def flops(call: Callable[[], object]) -> int:
    """Of the matrix products and convolutions in a call; to multiply and to add are two."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()
