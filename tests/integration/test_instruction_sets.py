"""The compiled graphs on CPUs with smaller instruction sets."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkout import ROOT

pytestmark = pytest.mark.slow

CODE = """
import json
from samclip_core.io import checkpoint
from samclip_core.engine.compiled import CompiledEngine
from samclip_core.engine.choice import agreement, noise
from samclip_core.errors import CheckpointError
edge = checkpoint.resolve("edge")
exact = CompiledEngine(edge, "float32", ("image_encoder",), runtime="openvino")
chosen = CompiledEngine(edge, "auto", ("image_encoder",))
outputs = exact.encode(*noise(384))
try:
    int8 = CompiledEngine(edge, "int8", ("image_encoder",)).dtype
except CheckpointError as error:
    int8 = str(error)
print(json.dumps({
    "values": [[float(value) for value in output.reshape(-1)[::997]] for output in outputs],
    "int8": int8,
    "agreement": agreement(chosen.encode(*noise(384)), outputs),
}))
"""


def on(instructions: str) -> dict[str, Any]:
    """Run CODE in a process limited to these instructions, and return its results."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ONEDNN_MAX_CPU_ISA": instructions}
    run = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def everything() -> dict[str, Any]:
    return on("ALL")


@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE", "AVX512_CORE_VNNI"])
def test_float32_is_the_same_and_the_choice_right(
    instructions: str, everything: dict[str, Any]
) -> None:
    limited = on(instructions)
    for ours, theirs in zip(limited["values"], everything["values"], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-3)  # the outputs are float16
    assert limited["agreement"] > 0.97
    if instructions == "AVX2" and platform.machine() == "x86_64":  # sums of products overflow
        assert "cannot be served as int8 on this CPU: choose auto or float32" in limited["int8"]
    if "avx512_vnni" in _flags() and instructions == "AVX512_CORE_VNNI":
        assert limited["int8"].startswith("int8")


def _flags() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""
