"""Engines that run the networks: compiled graphs, or torch on most GPUs. See ``base``."""

import os
import sys
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

from samclip_core.engine.base import PARTS, DtypeChoice, Engine, EngineName, Network
from samclip_core.errors import CheckpointError
from samclip_core.io import checkpoint

# Both runtimes report to their makers that they are imported, unless a variable is set, or a module
# is missing.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def load(
    directory: Path,
    device: str = "cpu",
    dtype: DtypeChoice = "auto",
    *,
    engine: EngineName = "auto",
    parts: Collection[Network] = PARTS,
    cache_dir: Path | None = None,
    threads: int = 0,
) -> Engine:
    """Load those of ``parts`` that a checkpoint has on a device.

    ``device`` is "cpu", or one of torch such as "cuda:1".
    ``engine`` "auto" uses the compiled graphs on a CPU if the checkpoint has them, else torch.
    Raises CheckpointError, which says how to install or create it, if something is missing.
    """
    if not checkpoint.read_config(directory).masks:
        parts = [part for part in parts if part != "mask_decoder"]
    exported = bool(checkpoint.graphs(directory))
    compiled = engine in ("openvino", "onnxruntime")
    if compiled or (engine == "auto" and device == "cpu" and exported):
        if device != "cpu":
            raise CheckpointError(f"compiled graphs run on cpu, not on {device!r}: use torch")
        from samclip_core.engine.compiled import CompiledEngine

        return CompiledEngine(directory, dtype, parts, cache_dir, threads, engine)
    if find_spec("torch") is None:
        if engine == "torch" or device != "cpu":
            raise CheckpointError(
                f"{device} needs PyTorch: in a clone, run pip install -e '.[gpu]'"
            )
        raise CheckpointError(
            f"{directory} has no graphs to run without torch: create them with `samclip export "
            f"{directory}`, for which run pip install -e '.[export]' in a clone"
        )
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # what Apple's GPU lacks, on the CPU
    from samclip_core.engine.torch_engine import TorchEngine

    if dtype in ("int8", "int8+bfloat16"):
        raise CheckpointError("torch does not support int8: choose float32 or bfloat16")
    if dtype == "auto":
        dtype = "float32" if device.startswith(("cpu", "mps")) else "bfloat16"
    return TorchEngine.load(directory, device, dtype, parts)
