"""Graphs in ONNX Runtime. See ``base.Runtime``.

Its library is imported where a graph is opened, because a process may have chosen another runtime.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from samclip_core.engine.base import Dtype, EngineName
from samclip_core.errors import SamClipError

if TYPE_CHECKING:
    import onnxruntime

_FEATURES = "pixels"
"""The input of graphs whose outputs are image features, in float16."""


@contextmanager
def _its_errors() -> Iterator[None]:
    """Raise RuntimeError for its errors, which have no base of their own."""
    try:
        yield
    except SamClipError:
        raise
    except Exception as error:
        raise RuntimeError(f"ONNX Runtime: {error}") from error


class OnnxRuntime:
    """Opens graphs for ``streams`` concurrent runs on ``threads`` threads altogether."""

    name: EngineName = "onnxruntime"
    floats: Sequence[Dtype] = ("float32",)
    int8 = False
    """It computes the graph's convolutions in float: 1.4 times the time of float32."""

    def __init__(self, threads: int, streams: int) -> None:
        self._threads, self._streams = threads, streams
        version("onnxruntime")  # without its package, there is no runtime

    @_its_errors()
    def open(self, path: Path, floats: Dtype, check: Callable[[], object]) -> "_Session":
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # a fork may have lost the package's
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # The threads that call take part. A spinning thread takes the core from other processes.
        options.intra_op_num_threads = max(1, self._threads - self._streams + 1)
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_cpu_mem_arena = False  # it would keep the memory of the largest run
        options.log_severity_level = 4  # errors are raised as well
        for dimension in ("batch", "images", "prompts"):
            options.add_free_dimension_override_by_name(dimension, 1)
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        check()
        return _Session(session, self._streams)

    def restore(self, stored: bytes, floats: Dtype) -> "_Session":
        """Not used: a session stores nothing."""
        raise RuntimeError("ONNX Runtime opens graphs from their files")


class _Session:
    """A session of which ``number`` calls run at once; further callers wait."""

    def __init__(self, session: "onnxruntime.InferenceSession", number: int) -> None:
        self._session = session
        self._inputs = [(each.name, each.type) for each in session.get_inputs()]
        self._free = BoundedSemaphore(number)

    def run(self, *inputs: NDArray) -> list[NDArray[Any]]:
        """Run the graph, which computes in float32."""
        given = {
            name: array.astype(np.float32, copy=False) if kind == "tensor(float)" else array
            for (name, kind), array in zip(self._inputs, inputs, strict=True)
        }
        with self._free, _its_errors():
            outputs: list[NDArray[Any]] = self._session.run(None, given)
        if _FEATURES in given:
            return [output.astype(np.float16) for output in outputs]
        return outputs

    def stored(self) -> bytes:
        return b""
