"""An encoder that PyTorch compiles in the background, for GPUs. Shape letters as in ``base``."""

import logging
import os
import weakref
from collections.abc import Callable, Sequence
from threading import Lock, Thread

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samclip_core.engine.base import CACHE_DIR
from samclip_core.engine.choice import agreement, fastest, milliseconds

Encode = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""``pixels_B3SS`` and ``sizes_B2`` on a device to the outputs there."""
LEAST_AGREEMENT = 0.999
"""Cosine of outputs in bfloat16, which compiled code rounds less often. Errors make it far less."""
SHAPES = 64
"""Shapes that PyTorch keeps compiled code of: batch sizes at each side, of each loaded model."""

logger = logging.getLogger(__name__)
_one_at_a_time = Lock()


class CompiledEncoder:
    """An encoder as it is, until code for a batch's shape is compiled and measured to be faster.

    PyTorch keeps that code in a folder of this user, so that a later start has it in seconds.
    Thread-safe.
    """

    def __init__(self, encode: Encode, backend: str | Callable[..., object] = "inductor") -> None:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(CACHE_DIR.expanduser() / "torch"))
        self._encode = encode
        self._compiled: Encode = torch.compile(
            encode, fullgraph=True, dynamic=False, backend=backend
        )
        self._chosen, self._lock = dict[torch.Size, Encode](), Lock()

    def __call__(self, pixels_B3SS: Tensor, sizes_B2: Tensor) -> Sequence[Tensor]:
        shape = pixels_B3SS.shape
        with self._lock:
            is_new = shape not in self._chosen
            chosen = self._chosen.setdefault(shape, self._encode)
        if is_new:
            given = weakref.ref(self), pixels_B3SS, sizes_B2
            Thread(target=_compile, args=given, name="compile", daemon=True).start()
        if chosen is self._encode:
            return chosen(pixels_B3SS, sizes_B2)
        try:
            with torch._dynamo.config.patch(error_on_recompile=True):
                return chosen(pixels_B3SS, sizes_B2)
        except torch._dynamo.exc.RecompileError as error:  # callers would wait for that
            logger.warning("batches of %s run as they are again: %s", [*shape], error)
            self._chosen[shape] = self._encode
            return self._encode(pixels_B3SS, sizes_B2)

    def compile(self, pixels_B3SS: Tensor, sizes_B2: Tensor) -> None:
        """Compile the code for a batch's shape, and take it if it agrees and is faster."""
        torch._dynamo.config.recompile_limit = SHAPES  # of this thread alone
        try:
            noise_B3SS = torch.randint_like(pixels_B3SS, 256)
            runs = {
                name: lambda encode=encode: on_host(encode(noise_B3SS, sizes_B2))
                for name, encode in (("as it is", self._encode), ("compiled", self._compiled))
            }
            alike = agreement(*(run() for run in runs.values()))
            measured_ms = milliseconds(runs)
        except Exception as error:  # the compiler may lack anything, and the device memory
            logger.warning("batches of %s run as they are: %s", [*pixels_B3SS.shape], error)
            return
        if alike >= LEAST_AGREEMENT and fastest(measured_ms) == "compiled":
            self._chosen[pixels_B3SS.shape] = self._compiled
        logger.info(
            "batches of %s: milliseconds %s, cosine %.4f", [*pixels_B3SS.shape], measured_ms, alike
        )


@torch.inference_mode()
def _compile(encoder: weakref.ref[CompiledEncoder], pixels_B3SS: Tensor, sizes_B2: Tensor) -> None:
    """Compile for an encoder, if its model is not unloaded before it is its turn."""
    with _one_at_a_time:
        if (found := encoder()) is not None:
            found.compile(pixels_B3SS, sizes_B2)


def on_host(outputs: Sequence[Tensor]) -> list[NDArray[np.floating]]:
    """Return outputs as arrays: all are copied at once, and waited for together."""
    moved = [output.to("cpu", non_blocking=True) for output in outputs]
    if outputs[0].is_cuda:
        torch.cuda.current_stream(outputs[0].device).synchronize()
    return [output.numpy() for output in moved]
