"""The exported graphs, compiled by OpenVINO: what serves on a CPU. Letters as in ``base``."""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from samclip_core import checkpoint
from samclip_core.engine.base import PARTS, Asked, Dtype, Encoded, EngineName, Part, PromptBatch
from samclip_core.engine.disk import DiskCache
from samclip_core.engine.likeness import agreement, noise
from samclip_core.errors import CheckpointError
from samclip_core.types import FloatArray

logger = logging.getLogger(__name__)

CORES_PER_STREAM = 4
"""More cores gain little for one image of the edge model; machines with more run several."""
RUNS = 8
"""Timed runs of each precision when ``auto`` chooses."""
WORTH = 0.9
"""A lower precision is taken where it needs less than this part of the time of a higher one."""
MARGIN = 0.02
"""Cosine by which int8 may be further from float32 than it was at the export."""
Variant = tuple[Dtype, str]
"""A precision, and the runtime's name of that of the layers in float."""
_HINTS: dict[Dtype, str] = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_CAPABILITIES: dict[Dtype, str] = {"bfloat16": "BF16", "float16": "FP16"}


class CompiledEngine:
    """The parts of a checkpoint that were asked for, compiled for this processor."""

    name: EngineName = "openvino"
    device = "cpu"
    batches = False

    def __init__(
        self,
        directory: Path,
        dtype: Asked = "auto",
        parts: Collection[Part] = PARTS,
        cache_dir: Path | None = None,
        threads: int = 0,
    ) -> None:
        """Load parts of a checkpoint.

        ``dtype`` "auto" takes the fastest precision that the checkpoint has a graph for.
        ``cache_dir`` keeps compiled graphs. ``threads`` 0: the runtime decides. Raises
        CheckpointError where a graph is missing or damaged, or the precision cannot be had.
        """
        self._core = ov.Core()
        self._directory = directory
        self._config = checkpoint.read_config(directory)
        about = (checkpoint.digest(directory), checkpoint.graphs_digest(directory))
        processor = str(self._core.get_property("CPU", "FULL_DEVICE_NAME"))
        self._disk = DiskCache(cache_dir, *about, ov.__version__, processor, str(threads))
        self.streams = max(1, (threads or _cores()) // CORES_PER_STREAM)
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": str(self.streams),
            **({"INFERENCE_NUM_THREADS": str(threads)} if threads else {}),
        }
        self.dtype: Dtype = "float32"
        self.measured_ms: Mapping[str, float] = {}
        """Of one image, of each precision that was tried."""
        if "image_encoder" in parts:
            checkpoint.verified(directory, checkpoint.WEIGHTS)
            self._choose(dtype)
        if "mask_decoder" in parts:
            checkpoint.verified(directory, checkpoint.WEIGHTS)
            self._decoder = self._compiled("mask_decoder.onnx", "f32")
        if "text_encoder" in parts:
            checkpoint.verified(directory, checkpoint.TEXT_WEIGHTS)
            self._text = self._compiled("text_encoder.onnx", "f32")

    def encode(self, pixels_B3SS: NDArray[np.uint8], sizes_B2: NDArray[np.int64]) -> Encoded:
        """As in ``base``; float16."""
        each = [
            self._encoder.run(pixels_B3SS[i : i + 1], sizes_B2[i : i + 1])
            for i in range(len(sizes_B2))
        ]
        return Encoded(*map(np.concatenate, zip(*each, strict=True)))

    def decode(
        self, sam_BDhw: FloatArray, prompts: PromptBatch
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As in ``base``."""
        logits_PMmm, iou_PM = self._decoder.run(sam_BDhw.astype(np.float16, copy=False), *prompts)
        return logits_PMmm, iou_PM

    def embed_text(self, ids_TN: NDArray[np.int64]) -> NDArray[np.float32]:
        """As in ``base``."""
        (text_TD,) = self._text.run(ids_TN)
        return text_TD

    def _choose(self, dtype: Asked) -> None:
        """Compile the image encoder in the fastest way that ``dtype`` allows."""
        variants = self._variants(dtype)
        if len(variants) > 1:
            known = self._disk.read_json(f"choice-{dtype}")
            if not isinstance(known, dict):
                known = self._measured(variants)
                self._disk.write_json(f"choice-{dtype}", known)
            self.measured_ms = known
            variants = [variant for variant in variants if variant[0] in known]
        if not variants:
            raise CheckpointError(
                f"{self._directory} cannot be served as {dtype} on this CPU: choose auto or "
                "float32; int8 needs `samclip export --calibrate`, and a CPU that computes it"
            )
        best = variants[0]
        for variant in variants[1:]:  # from the most precise to the least
            if self.measured_ms[variant[0]] < WORTH * self.measured_ms[best[0]]:
                best = variant
        self.dtype = best[0]
        self._encoder = self._encoder_of(*best)
        logger.info("image encoder in %s, of %s ms", best[0], dict(self.measured_ms))

    def _variants(self, dtype: Asked) -> list[Variant]:
        """Precisions that are asked for, the most precise first."""
        capabilities = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        able: list[Dtype] = ["float32"]
        able += [lower for lower, name in _CAPABILITIES.items() if name in capabilities]
        variants: list[Variant] = [(name, _HINTS[name]) for name in able]
        if checkpoint.INT8_GRAPH in checkpoint.graphs(self._directory):
            variants.append(("int8", _HINTS["float32"]))
            if "bfloat16" in able:
                variants.append(("int8+bfloat16", _HINTS["bfloat16"]))
        of_int8 = [variant for variant in variants if variant[0].startswith("int8")]
        asked = {"auto": variants, "int8": of_int8}
        return asked.get(dtype, [variant for variant in variants if variant[0] == dtype])

    def _measured(self, variants: Sequence[Variant]) -> dict[str, float]:
        """Milliseconds of one picture in each variant that this processor computes rightly."""
        encoders = {}
        exact = self._encoder_of("float32", "f32")
        for variant in variants:
            try:
                encoder = self._encoder_of(*variant)
            except RuntimeError as error:
                logger.info("%s cannot be compiled here: %s", variant[0], error)
                continue
            if variant[0].startswith("int8") and not self._agrees(encoder, exact):
                logger.warning("int8 is not used: this processor computes it inexactly")
                continue
            encoders[variant[0]] = encoder
        times = _milliseconds(list(encoders.values()), self._config.image_size)
        return dict(zip(encoders, times, strict=True))

    def _agrees(self, encoder: "_Requests", exact: "_Requests") -> bool:
        """Whether int8 is as near to float32 as it was at the export.

        Without instructions for int8, sums of products overflow on some processors.
        """
        about = checkpoint.graphs(self._directory)[checkpoint.INT8_GRAPH]
        picture = noise(self._config.image_size)
        return agreement(encoder.run(*picture), exact.run(*picture)) > about["agreement"] - MARGIN

    def _encoder_of(self, dtype: Dtype, hint: str) -> "_Requests":
        name = checkpoint.INT8_GRAPH if dtype.startswith("int8") else "image_encoder.onnx"
        return self._compiled(name, hint)

    def _compiled(self, name: str, hint: str) -> "_Requests":
        """Compile a graph, or take what was compiled before."""
        options = {**self._options, "INFERENCE_PRECISION_HINT": hint}
        if kept := self._disk.read(f"{name}-{hint}"):
            compiled = self._core.import_model(kept, "CPU", options)
        else:
            model = self._core.read_model(checkpoint.verified_graph(self._directory, name))
            model = _prepared(model, self._config.image_size)
            compiled = self._core.compile_model(model, "CPU", options)
            self._disk.write(f"{name}-{hint}", compiled.export_model().getvalue())
        return _Requests(compiled, self.streams)


class _Requests:
    """As many requests of a compiled graph as run at the same time; more callers wait."""

    def __init__(self, compiled: ov.CompiledModel, number: int) -> None:
        self._free = SimpleQueue[ov.InferRequest]()
        for _ in range(number):
            self._free.put(compiled.create_infer_request())

    def run(self, *inputs: NDArray) -> list[NDArray[Any]]:
        """The outputs, copied: the next call overwrites the runtime's own."""
        request = self._free.get()
        try:
            request.infer(dict(enumerate(inputs)), share_inputs=True)
            return [np.array(tensor.data) for tensor in request.output_tensors]
        finally:
            self._free.put(request)


def _prepared(model: ov.Model, side: int) -> ov.Model:
    """With maps and vectors of pictures in float16, and one picture per run of the encoder.

    A batch of one has no unknown sizes, which the runtime would compute again and again; several
    at a time gain nothing on a CPU.
    """
    names = {port.any_name: port for port in model.inputs}
    convert = ov.preprocess.PrePostProcessor(model)
    if "pixels" in names:
        model.reshape({names["pixels"]: [1, 3, side, side], names["sizes"]: [1, 2]})
        for index in range(len(model.outputs)):
            convert.output(index).tensor().set_element_type(ov.Type.f16)
    elif "sam" in names:
        convert.input("sam").tensor().set_element_type(ov.Type.f16)
    return convert.build()


def _milliseconds(encoders: Sequence[_Requests], side: int) -> list[float]:
    """The least time of one picture, of each encoder, in turns."""
    picture = noise(side)
    taken: list[list[float]] = [[] for _ in encoders]
    for _ in range(RUNS):
        for encoder, milliseconds in zip(encoders, taken, strict=True):
            begin = perf_counter()
            encoder.run(*picture)
            milliseconds.append(round(1000 * (perf_counter() - begin), 2))
    return [min(milliseconds) for milliseconds in taken]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
