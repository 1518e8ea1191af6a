"""Choose a runtime and a precision by measuring time and agreement with float32, and store it.

Shape letters as in ``base``.
"""

import base64
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from samclip_core.config import SamClipConfig
from samclip_core.engine import processor
from samclip_core.engine.base import Dtype, DtypeChoice, EngineName, Network
from samclip_core.engine.disk import DiskCache
from samclip_core.errors import CheckpointError
from samclip_core.geometry import FloatArray
from samclip_core.types import OBJECT, PADDING

ROUNDS = 5
"""Timed runs of each candidate, in turns; the least time counts, as the least disturbed."""
HOPELESS = 4
"""Measuring ends after two rounds if one candidate takes this many times as long as the other. A
processor that only emulates bfloat16 takes ten times as long, which is minutes per run of a large
model."""
WORTH = 0.9
"""Another precision or runtime is chosen if it takes less than this fraction of the time."""
FLOAT_OF: dict[Dtype, Dtype] = {"int8": "float32", "int8+bfloat16": "bfloat16"}
"""The precision of the layers of an int8 graph that stay in floating point."""


class Variant(NamedTuple):
    """A way to run a part: a runtime, a precision, and the graph that has it."""

    runtime: EngineName
    dtype: Dtype
    graph: str

    @property
    def name(self) -> str:
        return f"{self.runtime} {self.dtype}"

    @property
    def file(self) -> str:
        """The name of its compiled graph on disk."""
        return f"{self.graph}-{self.runtime}-{self.floats}"

    @property
    def floats(self) -> Dtype:
        """The precision of the layers that are not in int8."""
        return FLOAT_OF.get(self.dtype, self.dtype)


def milliseconds(runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Return the minimum time of a run of each candidate; 0 if there is only one."""
    if len(runs) == 1:
        return dict.fromkeys(runs, 0.0)
    least = dict.fromkeys(runs, math.inf)
    for number in range(ROUNDS):
        for name, run in runs.items():
            begin = perf_counter()
            run()
            least[name] = min(least[name], round(1000 * (perf_counter() - begin), 2))
        if number and max(least.values()) > HOPELESS * min(least.values()):
            break
    return least


def fastest(measured_ms: Mapping[str, float]) -> str:
    """Return the fastest candidate; a later one must be clearly faster than an earlier one."""
    best, *others = measured_ms
    for name in others:
        if measured_ms[name] < WORTH * measured_ms[best]:
            best = name
    return best


def noise(side: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return one image of fixed random noise, as ``pixels_13SS`` and ``sizes_12``."""
    pixels_13SS = np.random.default_rng(0).integers(0, 256, (1, 3, side, side), np.uint8)
    return pixels_13SS, np.array([[side, side]], np.int64)


def click(config: SamClipConfig, sam_1Dhw: FloatArray, point: tuple[float, float]) -> list[NDArray]:
    """Return the inputs of the mask decoder for one click, (x, y) in the model frame."""
    side = config.logits_side
    return [
        sam_1Dhw,
        np.zeros(1, np.int64),
        np.array([[point, (0, 0)]], np.float32),
        np.array([[OBJECT, PADDING]], np.int64),
        np.zeros((1, 1, side, side), np.float32),
        np.zeros(1, np.float32),
    ]


def agreement(one: Sequence[FloatArray], other: Sequence[FloatArray]) -> float:
    """Return the smallest cosine between corresponding outputs, each flattened to a vector."""
    cosines = []
    for ours, theirs in zip(one, other, strict=True):
        a, b = (output.astype(np.float64).reshape(-1) for output in (ours, theirs))
        cosines.append(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))
    return float(np.min(cosines))


OF_TORCH, SAMPLED = "of_torch", 256
"""An image encoder in the manifest has so many values of each of PyTorch's outputs for ``noise``,
which show whether a runtime computes it correctly."""


def sampled(outputs: Sequence[FloatArray]) -> list[NDArray[np.float16]]:
    """Return SAMPLED values of each output, from places all over it."""
    return [
        output.reshape(-1)[np.random.default_rng(0).integers(0, output.size, SAMPLED)].astype("<f2")
        for output in outputs
    ]


def packed(outputs: Sequence[FloatArray]) -> list[str]:
    """Return ``sampled`` values as base64."""
    return [base64.b64encode(values.tobytes()).decode() for values in sampled(outputs)]


def unpacked(texts: Any, outputs: int) -> list[NDArray[np.float16]]:
    """Return the values that ``packed`` made texts of. Raises CheckpointError for anything else."""
    try:
        values = [np.frombuffer(base64.b64decode(text), "<f2") for text in texts]
    except (TypeError, ValueError):
        values = []
    if [len(of_one) for of_one in values] != outputs * [SAMPLED]:
        raise CheckpointError(
            "the manifest's values of PyTorch are damaged: create the graphs again with "
            "`samclip export`"
        )
    return values


FORMAT = "4"
"""Version of the files on disk. Increment it when what a runtime does to a graph changes."""
DISTURBED_S = 86400
"""Seconds for which a choice holds that was measured on a busy machine, so that not every load
measures again."""


@dataclass(frozen=True)
class Choice:
    """The name of a part's fastest variant, and how it was measured.

    measured_ms: least time of each variant; empty if there was only one. quiet: whether no other
    program used the processor meanwhile. at: seconds since 1970.
    """

    chosen: str
    measured_ms: Mapping[str, float]
    quiet: bool
    at: float = field(default_factory=time.time)

    @property
    def holds(self) -> bool:
        """Whether a load may use it."""
        return self.quiet or 0 <= time.time() - self.at < DISTURBED_S


class Choices(DiskCache):
    """Choices and compiled graphs of one checkpoint on this machine.

    ``identity`` is that of the checkpoint with its graphs; the rest are parameters of the engine.
    """

    def __init__(
        self,
        identity: str,
        dtype: DtypeChoice,
        folder: Path | None,
        threads: int,
        runtime: EngineName = "auto",
    ) -> None:
        # CPUs of the same name can differ in their instructions.
        machine = [processor.name(), *sorted(processor.instructions()), str(processor.cores())]
        machine.append(os.environ.get("ONEDNN_MAX_CPU_ISA", ""))
        versions = map(_version, ("openvino", "onnxruntime"))
        super().__init__(folder, FORMAT, identity, *machine, *versions, str(threads))
        self._file = f"choice-%s-{runtime}-{dtype}"

    def choice(self, part: Network) -> Choice | None:
        """Return the stored choice for a part, or None."""
        found = self.read_json(self._file % part)
        return Choice(**found) if found else None

    def choose(self, part: Network, choice: Choice) -> None:
        self.write_json(self._file % part, asdict(choice))

    def forget(self, part: Network) -> None:
        """Remove a choice, so that the next load measures."""
        self.write_json(self._file % part, None)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
