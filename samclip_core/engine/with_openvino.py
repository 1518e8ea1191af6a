"""Graphs in OpenVINO, which compiles them. See ``base.Runtime``."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from samclip_core.engine.base import Dtype, EngineName

_FLOATS: dict[Dtype, tuple[str, str]] = {
    "float32": ("f32", "FP32"),
    "bfloat16": ("bf16", "BF16"),
    "float16": ("f16", "FP16"),
}
"""OpenVINO's names for each precision: as a hint, and as a capability of a processor."""


class OpenVino:
    """Compiles graphs for ``streams`` concurrent runs; ``threads`` 0 lets OpenVINO decide."""

    name: EngineName = "openvino"
    int8 = True

    def __init__(self, threads: int, streams: int) -> None:
        self._core = _runtime()
        self._streams = streams
        self._options = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": str(streams)}
        if threads:
            self._options["INFERENCE_NUM_THREADS"] = str(threads)
        capabilities = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.floats: Sequence[Dtype] = [
            name for name, (_, needed) in _FLOATS.items() if needed in capabilities
        ]

    def open(self, path: Path, floats: Dtype, check: Callable[[], object]) -> "_Requests":
        model = self._core.read_model(path)
        check()
        compiled = self._core.compile_model(_prepared(model), "CPU", self._options_for(floats))
        return _Requests(compiled, self._streams)

    def restore(self, stored: bytes, floats: Dtype) -> "_Requests":
        compiled = self._core.import_model(stored, "CPU", self._options_for(floats))
        return _Requests(compiled, self._streams)

    def _options_for(self, floats: Dtype) -> dict[str, str]:
        return {**self._options, "INFERENCE_PRECISION_HINT": _FLOATS[floats][0]}


@cache
def _runtime() -> ov.Core:
    """Return the runtime, of which a process has one for its whole life.

    Each ``ov.Core`` with a CPU plugin installs an alternate signal stack and restores the previous
    one when it is destroyed. Unless several are destroyed in the reverse order of their creation,
    the process is left with a freed stack and crashes at its next signal.
    """
    return ov.Core()


class _Requests:
    """A fixed pool of inference requests for a compiled graph; callers wait for a free one."""

    def __init__(self, compiled: ov.CompiledModel, number: int) -> None:
        self._compiled = compiled
        self._free = SimpleQueue[ov.InferRequest]()
        for _ in range(number):
            self._free.put(compiled.create_infer_request())

    def run(self, *inputs: NDArray) -> list[NDArray[Any]]:
        """Run the graph; return copies of the outputs, which the next call would overwrite."""
        request = self._free.get()
        try:
            request.infer(dict(enumerate(inputs)), share_inputs=True)
            return [np.array(tensor.data) for tensor in request.output_tensors]
        finally:
            self._free.put(request)

    def stored(self) -> bytes:
        return self._compiled.export_model().getvalue()


def _prepared(model: ov.Model) -> ov.Model:
    """Set the image features to float16, and the batch size of images and prompts to one.

    A fixed batch size saves the runtime from computing shapes in every run, and lets it fuse
    more layers; larger batches gain nothing on a CPU.
    """
    names = {port.any_name: port for port in model.inputs}
    convert = ov.preprocess.PrePostProcessor(model)
    if "pixels" in names:
        for index in range(len(model.outputs)):
            convert.output(index).tensor().set_element_type(ov.Type.f16)
    elif "sam" in names:
        convert.input("sam").tensor().set_element_type(ov.Type.f16)
    else:
        return model
    model.reshape({port: [1, *list(port.partial_shape)[1:]] for port in model.inputs})
    return convert.build()
