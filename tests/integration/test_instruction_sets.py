"""The compiled graphs on a CPU with AVX2 alone answer as on one with all instructions."""

import json
import os
import platform
import subprocess
import sys
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
outputs = exact.encode(*noise(384))[:3]
try:
    int8 = CompiledEngine(edge, "int8", ("image_encoder",)).dtype
except CheckpointError as error:
    int8 = str(error)
print(json.dumps({
    "values": [[float(value) for value in output.reshape(-1)[::997]] for output in outputs],
    "int8": int8,
    "agreement": agreement(chosen.encode(*noise(384))[:3], outputs),
}))
"""


def on(instructions: str) -> dict[str, Any]:
    """Run CODE in a process limited to these instructions, and return its results."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ONEDNN_MAX_CPU_ISA": instructions}
    run = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout)


def test_with_avx2_alone_float32_is_the_same_and_the_choice_right() -> None:
    everything, limited = on("ALL"), on("AVX2")
    for ours, theirs in zip(limited["values"], everything["values"], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-3)  # the outputs are float16
    assert limited["agreement"] > 0.97
    if platform.machine() == "x86_64":  # sums of products overflow
        assert "cannot be served as int8 on this CPU: choose auto or float32" in limited["int8"]
