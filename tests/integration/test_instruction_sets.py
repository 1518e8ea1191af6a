"""The compiled graphs on CPUs with smaller instruction sets."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.checkout import ROOT

CODE = """
import json
from samclip_core.io import checkpoint
from samclip_core.engine.compiled import CompiledEngine
from samclip_core.engine.likeness import agreement, noise
edge = checkpoint.resolve("edge")
exact = CompiledEngine(edge, "float32", ("image_encoder",))
chosen = CompiledEngine(edge, "auto", ("image_encoder",))
outputs = exact.encode(*noise(384))
print(json.dumps({
    "values": [[float(value) for value in output.reshape(-1)[::997]] for output in outputs],
    "agreement": agreement(chosen.encode(*noise(384)), outputs),
}))
"""


def on(instructions: str) -> dict[str, list[list[float]]]:
    """Run CODE in a process limited to these instructions, and return its results."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ONEDNN_MAX_CPU_ISA": instructions}
    run = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def everything() -> dict[str, list[list[float]]]:
    return on("ALL")


@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE", "AVX512_CORE_VNNI"])
def test_float32_is_the_same_and_the_choice_right(
    instructions: str, everything: dict[str, list[list[float]]]
) -> None:
    limited = on(instructions)
    for ours, theirs in zip(limited["values"], everything["values"], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-3)  # the outputs are float16
    assert limited["agreement"] > 0.97
