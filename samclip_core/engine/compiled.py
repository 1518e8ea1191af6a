"""The CPU engine: exported graphs, compiled by OpenVINO. Shape letters as in ``base``."""

import logging
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from samclip_core.config import SamClipConfig
from samclip_core.engine.base import PARTS, Asked, Dtype, Encoded, EngineName, Part, PromptBatch
from samclip_core.engine.choice import agreement, fastest, milliseconds, noise
from samclip_core.engine.disk import DiskCache
from samclip_core.errors import CheckpointError, InvalidRequest
from samclip_core.geometry import FloatArray
from samclip_core.io import checkpoint
from samclip_core.types import OBJECT, PADDING

logger = logging.getLogger(__name__)

CORES_PER_STREAM = 4
"""An image of the edge model gains little from more cores; larger machines run several streams."""
MARGIN = 0.02
"""Maximum drop of int8's cosine to float32 below its value at the export."""
FORMAT = "2"
"""Version of the files on disk. Increment it when ``_prepared`` or the options change."""
Variant = tuple[str, str]
"""A graph's file name, and OpenVINO's name for the precision of its float layers."""
_FLOATS: dict[Dtype, tuple[str, str]] = {
    "float32": ("f32", "FP32"),
    "bfloat16": ("bf16", "BF16"),
    "float16": ("f16", "FP16"),
}
"""OpenVINO's names for each precision: as a hint, and as a capability of a processor."""
_OF_INT8: dict[Dtype, Dtype] = {"int8": "float32", "int8+bfloat16": "bfloat16"}
_ENCODER, _DECODER, _TEXT = "image_encoder.onnx", "mask_decoder.onnx", "text_encoder.onnx"


class CompiledEngine:
    """The requested parts of a checkpoint, compiled for this processor."""

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

        ``dtype`` "auto" selects the fastest precision that the checkpoint has a graph for.
        ``cache_dir`` stores compiled graphs. ``threads`` 0 lets the runtime decide. Raises
        CheckpointError if a graph is missing or damaged, or the precision is not available.
        """
        self._core = _runtime()
        self._directory = directory
        self._config = checkpoint.read_config(directory)
        self.graphs, self._listed = checkpoint.exported(directory)
        digests = checkpoint.digest(directory), self.graphs
        self._disk = DiskCache(cache_dir, FORMAT, *digests, *_processor(self._core), str(threads))
        self.streams = max(1, (threads or _cores()) // CORES_PER_STREAM)
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": str(self.streams),
            **({"INFERENCE_NUM_THREADS": str(threads)} if threads else {}),
        }
        self.dtype: Dtype = "float32"
        self.decoder_dtype: Dtype = "float32"
        self.measured_ms: Mapping[Dtype, float] = {}
        """Time per image in each precision that was tried."""
        if "image_encoder" in parts:
            checkpoint.verified(directory, checkpoint.WEIGHTS)
            inputs, variants = noise(self._config.image_size), self._of_encoder(dtype)
            encoder, self.measured_ms = self._fastest("image_encoder", dtype, variants, inputs)
            self.dtype = fastest(self.measured_ms)
            self._encoders = {self._config.image_size: encoder}
            graph, hint = variants[self.dtype]
            for side in self._config.sizes[1:]:
                name = checkpoint.at_size(graph, side, self._config.image_size)
                self._encoders[side] = self._keep((name, hint), self._compiled((name, hint)))
        if "mask_decoder" in parts:
            checkpoint.verified(directory, checkpoint.WEIGHTS)
            variants = {
                name: variant
                for name, variant in self._floats(_DECODER).items()
                if dtype != "float32" or name == "float32"
            }
            click = _click(self._config)
            self._decoder, decoder_ms = self._fastest("mask_decoder", dtype, variants, click)
            self.decoder_dtype = fastest(decoder_ms)
        if "text_encoder" in parts:
            checkpoint.verified(directory, checkpoint.TEXT_WEIGHTS)
            self._text = self._keep((_TEXT, "f32"), self._compiled((_TEXT, "f32")))

    def encode(self, pixels_B3SS: NDArray[np.uint8], sizes_B2: NDArray[np.int64]) -> Encoded:
        """See ``base``; returns float16."""
        side = pixels_B3SS.shape[-1]
        if side not in self._encoders:
            raise InvalidRequest(
                f"the exported graphs read frames of {', '.join(map(str, self._encoders))} pixels, "
                f"not {side}: choose one of these, or load the checkpoint with engine='torch'"
            )
        each = [
            self._encoders[side].run(pixels_B3SS[i : i + 1], sizes_B2[i : i + 1])
            for i in range(len(sizes_B2))
        ]
        return Encoded.of(map(np.concatenate, zip(*each, strict=True)))

    def decode(
        self, sam_BDhw: FloatArray, prompts: PromptBatch
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See ``base``."""
        sam_BDhw = sam_BDhw.astype(np.float16, copy=False)
        first_1 = np.zeros(1, np.int64)
        each = [
            self._decoder.run(
                sam_BDhw[image : image + 1], first_1, *(field[p : p + 1] for field in prompts[1:])
            )
            for p, image in enumerate(prompts.image_P)
        ]
        logits_PMmm, iou_PM = map(np.concatenate, zip(*each, strict=True))
        return logits_PMmm, iou_PM

    def embed_text(self, ids_TN: NDArray[np.int64]) -> NDArray[np.float32]:
        """See ``base``."""
        (text_TD,) = self._text.run(ids_TN)
        return text_TD

    def _fastest(
        self,
        part: Part,
        dtype: Asked,
        variants: Mapping[Dtype, Variant],
        inputs: Sequence[NDArray],
    ) -> tuple["_Requests", Mapping[Dtype, float]]:
        """Compile the fastest of a part's variants; return it with the times of all of them.

        ``inputs`` are those of one run. The choice is cached.
        """
        choice = f"choice-{part}-{dtype}"
        known: dict[Dtype, float] | None = self._disk.read_json(choice)
        if isinstance(known, dict) and known and known.keys() <= variants.keys():
            return self._compiled(variants[fastest(known)]), known
        requests = self._supported(variants)
        if not requests:
            raise CheckpointError(
                f"{self._directory} cannot be served as {dtype} on this CPU: choose auto or "
                "float32; int8 needs `samclip export --calibrate`, and a CPU with "
                "int8 instructions"
            )
        known = milliseconds({name: partial(each.run, *inputs) for name, each in requests.items()})
        best = fastest(known)
        self._disk.write_json(choice, known)
        logger.info("%s in %s; measured ms: %s", part, best, known)
        return self._keep(variants[best], requests[best]), known

    def _floats(self, graph: str) -> dict[Dtype, Variant]:
        """Return the floating-point precisions of this processor with a graph's variants."""
        capabilities = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return {
            name: (graph, hint)
            for name, (hint, capability) in _FLOATS.items()
            if capability in capabilities
        }

    def _of_encoder(self, dtype: Asked) -> dict[Dtype, Variant]:
        """Return the encoder's variants that ``dtype`` allows, the most precise first."""
        variants = self._floats(_ENCODER)
        if checkpoint.INT8_GRAPH in self._listed:
            for name, float_dtype in _OF_INT8.items():
                if float_dtype in variants:
                    variants[name] = (checkpoint.INT8_GRAPH, variants[float_dtype][1])
        return {
            name: variant
            for name, variant in variants.items()
            if dtype in ("auto", name) or (dtype == "int8" and name in _OF_INT8)
        }

    def _supported(self, variants: Mapping[Dtype, Variant]) -> dict[Dtype, "_Requests"]:
        """Compile the variants that give correct results on this processor."""
        compiled: dict[Dtype, _Requests] = {}
        for name, variant in variants.items():
            try:
                requests = self._compiled(variant)
            except RuntimeError as error:
                logger.warning("%s cannot be compiled on this processor: %s", name, error)
                continue
            if variant[0] == checkpoint.INT8_GRAPH:
                exact = compiled.get("float32") or self._compiled((_ENCODER, "f32"))
                if not self._agrees(requests, exact):
                    logger.warning("%s is not used: its results are wrong on this processor", name)
                    continue
            compiled[name] = requests
        return compiled

    def _agrees(self, encoder: "_Requests", exact: "_Requests") -> bool:
        """Return whether int8 is about as close to float32 as it was at the export.

        Some processors without int8 instructions overflow when they accumulate products.
        """
        entry = self._listed[checkpoint.INT8_GRAPH]
        image = noise(self._config.image_size)
        return agreement(encoder.run(*image), exact.run(*image)) > entry["agreement"] - MARGIN

    def _compiled(self, graph: Variant) -> "_Requests":
        name, hint = graph
        options = {**self._options, "INFERENCE_PRECISION_HINT": hint}
        if cached := self._disk.read(f"{name}-{hint}"):
            try:
                return _Requests(self._core.import_model(cached, "CPU", options), self.streams)
            except RuntimeError as error:
                logger.warning("a cached graph cannot be loaded and is compiled again: %s", error)
        checkpoint.verified_graph(self._directory, name, self._listed)
        with _without_links(self._directory, name) as path:
            model = self._core.read_model(path)
            # Again, because the runtime reads the file by its path: an export may have replaced it.
            checkpoint.verified_graph(path.parent, name, self._listed)
            compiled = self._core.compile_model(_prepared(model), "CPU", options)
            return _Requests(compiled, self.streams)

    def _keep(self, graph: Variant, requests: "_Requests") -> "_Requests":
        """Store a compiled graph on disk, unless it is there, and return it."""
        name = "-".join(graph)
        if self._disk.usable and self._disk.read(name) is None:
            self._disk.write(name, requests.compiled.export_model().getvalue())
        return requests


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
        self.compiled = compiled
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


@contextmanager
def _without_links(directory: Path, name: str) -> Iterator[Path]:
    """Yield the path of a graph beside its weights; OpenVINO refuses links, so they are copied."""
    files = [name, checkpoint.WEIGHTS, checkpoint.TEXT_WEIGHTS]
    if not any((directory / file).is_symlink() for file in files):
        yield directory / name
        return
    with tempfile.TemporaryDirectory() as scratch:
        for file in files:
            shutil.copy(directory / file, scratch)
        yield Path(scratch) / name


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


def _click(config: SamClipConfig) -> list[NDArray]:
    """Return the inputs of the mask decoder for one click."""
    side = 4 * config.grid
    rng = np.random.default_rng(0)
    return [
        rng.standard_normal((1, config.embed_dim, config.grid, config.grid)).astype(np.float16),
        np.zeros(1, np.int64),
        np.full((1, 2, 2), config.image_size / 2, np.float32),
        np.array([[OBJECT, PADDING]], np.int64),
        np.zeros((1, 1, side, side), np.float32),
        np.zeros(1, np.float32),
    ]


def _processor(core: ov.Core) -> list[str]:
    """Return the properties that a compiled graph depends on.

    CPUs of the same name can differ in their instructions.
    """
    flags = Path("/proc/cpuinfo")
    return [
        ov.__version__,
        str(core.get_property("CPU", "FULL_DEVICE_NAME")),
        *sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
        next((line for line in flags.read_text().splitlines() if line.startswith("flags")), "")
        if flags.exists()
        else "",
        os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        str(_cores()),
    ]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
