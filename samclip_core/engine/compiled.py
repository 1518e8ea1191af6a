"""The engine of exported graphs, each in the fastest runtime. Shape letters as in ``base``."""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samclip_core.config import SamClipConfig
from samclip_core.engine.base import (
    PARTS,
    Dtype,
    DtypeChoice,
    Encoded,
    EngineName,
    Graph,
    Network,
    PromptBatch,
    Runtime,
)
from samclip_core.engine.choice import (
    FLOAT_OF,
    OF_TORCH,
    Choice,
    Choices,
    Variant,
    agreement,
    click,
    fastest,
    milliseconds,
    noise,
    sampled,
    unpacked,
)
from samclip_core.engine.disk import without_links
from samclip_core.engine.int8 import ON_NOISE, refusal
from samclip_core.engine.processor import Watch, cores
from samclip_core.engine.with_onnxruntime import OnnxRuntime
from samclip_core.errors import CheckpointError, InvalidRequest
from samclip_core.geometry import FloatArray
from samclip_core.io import checkpoint
from samclip_core.nn import tokenizer

logger = logging.getLogger(__name__)

CORES_PER_STREAM = 4
"""An image of the edge model gains little from more cores; larger machines run several streams."""
MARGIN = 0.02
"""Maximum drop of int8's cosine to float32 below its value at the export."""
ALIKE = 0.9999
"""Minimum cosine between two runtimes in float32, which replies and caches do not tell apart."""
_ENCODER, _DECODER, _TEXT = "image_encoder.onnx", "mask_decoder.onnx", "text_encoder.onnx"


_Measured = tuple[Variant, Graph, Choice]
"""The fastest variant, its open graph, and how it was found."""


class CompiledEngine:
    """The requested parts of a checkpoint, each in the runtime that is fastest on this machine."""

    device = "cpu"
    batches = False

    def __init__(
        self,
        directory: Path,
        dtype: DtypeChoice = "auto",
        parts: Collection[Network] = PARTS,
        cache_dir: Path | None = None,
        threads: int = 0,
        runtime: EngineName = "auto",
    ) -> None:
        """Load parts of a checkpoint.

        ``dtype`` "auto" selects the fastest precision that the checkpoint has a graph for, and
        ``runtime`` "auto" the fastest runtime for each part. ``cache_dir`` stores compiled graphs
        and choices. ``threads`` 0 lets the runtime decide. Raises CheckpointError if a graph is
        missing or damaged, or the precision or the runtime is not available.
        """
        self._directory = directory
        self._config = checkpoint.read_config(directory)
        self.graphs, self._listed = checkpoint.exported(directory)
        self.streams = max(1, (threads or cores()) // CORES_PER_STREAM)
        runtimes = _runtimes(threads, self.streams)
        identity = checkpoint.digest(directory) + self.graphs
        self._disk = Choices(identity, dtype, cache_dir, threads, runtime)
        self._asked = dtype
        self._runtimes = {
            known.name: known for known in runtimes if runtime in ("auto", known.name)
        }
        if not self._runtimes:
            raise CheckpointError(
                f"{runtime} is not installed: choose another engine, or run "
                "pip install -e '.[core]' in a clone"
            )
        self.names: Mapping[Network, EngineName] = {}
        self.dtype: Dtype = "float32"
        self.decoder_dtype: Dtype = "float32"
        self.measured_ms: Mapping[str, float] = {}
        with without_links(directory) as self._path:
            self._load(parts)

    def _load(self, parts: Collection[Network]) -> None:
        directory, dtype = self._directory, self._asked
        if "image_encoder" in parts:
            checkpoint.verified(directory, checkpoint.WEIGHTS)
            variants, image = self._of_encoder(dtype), partial(noise, self._config.image_size)
            chosen, encoder, self.measured_ms = self._fastest("image_encoder", variants, image)
            self.dtype = chosen.dtype
            self._encoders = {self._config.image_size: encoder}
            for side in self._config.sizes[1:]:
                name = checkpoint.at_size(chosen.graph, side, self._config.image_size)
                other = chosen._replace(graph=name)
                self._encoders[side] = self._keep(other, self._opened(other))
        if "mask_decoder" in parts:
            checkpoint.verified(directory, checkpoint.WEIGHTS)
            floats: DtypeChoice = "float32" if dtype == "float32" else "auto"
            variants = self._floats(_DECODER, floats)
            click = partial(_click, self._config)
            chosen, self._decoder, _ = self._fastest("mask_decoder", variants, click)
            self.decoder_dtype = chosen.dtype
        if "text_encoder" in parts:
            checkpoint.verified(directory, checkpoint.TEXT_WEIGHTS)
            variants = self._floats(_TEXT, "float32")
            _, self._text, _ = self._fastest(
                "text_encoder", variants, lambda: [tokenizer.load(directory)(["a photo of a dog"])]
            )

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
        (text_TD,) = self._text.run(ids_TN)
        return text_TD

    def _fastest(
        self, part: Network, variants: Sequence[Variant], inputs: Callable[[], Sequence[NDArray]]
    ) -> tuple[Variant, Graph, Mapping[str, float]]:
        """Open the fastest of a part's variants; return it, opened, and the times of all of them.

        ``inputs`` makes those of one run. The choice is stored.
        """
        found = self._chosen_before(part, variants)
        if not found:
            # Processes that start together would disturb each other, and choose differently.
            with self._disk.locked(part) if len(variants) > 1 else nullcontext():
                found = self._chosen_before(part, variants)
                found = found or self._measured(part, variants, inputs())
        chosen, opened, choice = found
        self.names = {**self.names, part: chosen.runtime}
        return chosen, self._keep(chosen, opened), choice.measured_ms

    def _chosen_before(self, part: Network, variants: Sequence[Variant]) -> _Measured | None:
        """Return what an earlier load has chosen, opened; None if it must be measured."""
        known = self._disk.choice(part)
        for chosen in variants:
            if known and known.holds and known.chosen == chosen.name:
                try:
                    return chosen, self._opened(chosen), known
                except RuntimeError as error:
                    logger.warning("%s no longer runs, another is chosen: %s", chosen.name, error)
        return None

    def _measured(
        self, part: Network, variants: Sequence[Variant], inputs: Sequence[NDArray]
    ) -> _Measured:
        """Compare each variant with the best one before it; at most two are in memory at once."""
        best: list[tuple[Variant, Graph]] = []
        known, quiet = dict[str, float](), True

        def promising(variant: Variant) -> bool:
            """Of int8, only what computes its float layers like the best one: compiling is slow."""
            alike = {other.floats == "bfloat16" for other in (variant, *(kept for kept, _ in best))}
            return variant.dtype not in FLOAT_OF or self._asked != "auto" or len(alike) == 1

        for variant, graph in self._supported(filter(promising, variants), inputs):
            best.append((variant, graph))
            del graph  # the slower of two is released before the next one is opened
            watch = Watch()
            times = milliseconds({v.name: partial(opened.run, *inputs) for v, opened in best})
            quiet &= len(best) == 1 or watch.quiet()
            best[:] = [pair for pair in best if pair[0].name == fastest(times)]
            known |= times
        if not best:
            raise CheckpointError(
                f"{self._directory} cannot be served as {self._asked} on this CPU: choose auto or "
                "float32; int8 needs `samclip export --calibrate`, OpenVINO, and a CPU with int8 "
                "instructions"
            )
        (chosen, opened), compared = best[0], known if len(known) > 1 else {}
        choice = Choice(chosen.name, compared, quiet)
        self._disk.choose(part, choice)
        logger.info("%s: %s", part, choice)
        return chosen, opened, choice

    def _supported(
        self, variants: Iterable[Variant], inputs: Sequence[NDArray]
    ) -> Iterator[tuple[Variant, Graph]]:
        """Open in turn the variants that this machine computes correctly.

        Some processors without int8 instructions overflow when they accumulate products. A runtime
        whose float32 differs from PyTorch's at the export is not used at all.
        """
        exact: list[NDArray] = []  # outputs in float32
        wrong = set[EngineName]()
        for variant in variants:
            if variant.runtime in wrong:
                continue
            is_int8, is_exact = variant.graph == checkpoint.INT8_GRAPH, variant.dtype == "float32"
            least, right = ALIKE, True
            try:
                opened = self._opened(variant)
                if is_int8 and not exact:
                    exact = self._opened(Variant("openvino", "float32", _ENCODER)).run(*inputs)
                    right = self._are_of_torch(exact)
                outputs = opened.run(*inputs)
            except RuntimeError as error:
                logger.warning("%s cannot be used on this machine: %s", variant.name, error)
                continue
            if is_int8:
                least = self._listed[variant.graph][ON_NOISE] - MARGIN
            if is_exact and variant.graph == _ENCODER:
                right = self._are_of_torch(outputs)
            if exact and (is_exact or is_int8):
                right &= agreement(outputs, exact) > least
            if right:
                exact = exact or (outputs if is_exact else [])
                yield variant, opened
            else:
                logger.warning("%s is wrong on this machine: it is not used", variant.name)
                wrong |= {variant.runtime} if is_exact else set()
            del opened  # before the next one is opened

    def _are_of_torch(self, outputs: Sequence[NDArray]) -> bool:
        """Return whether an image encoder's outputs are PyTorch's, as far as the export noted."""
        of_torch = self._listed[_ENCODER].get(OF_TORCH)
        known = unpacked(of_torch, len(outputs)) if of_torch else []
        return not known or agreement(sampled(outputs), known) > ALIKE

    def _floats(self, graph: str, dtype: DtypeChoice) -> list[Variant]:
        """Return the variants in floating point that ``dtype`` allows, the most precise first.

        CPUs compute float16 and bfloat16 equally fast: "auto" allows the first of them.
        """
        order: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")
        return [
            Variant(runtime.name, floats, graph)
            for floats in order
            for runtime in self._runtimes.values()
            if floats in (runtime.floats[:2] if dtype == "auto" else runtime.floats)
            and dtype in ("auto", floats)
        ]

    def _of_encoder(self, dtype: DtypeChoice) -> list[Variant]:
        """Return the encoder's variants that ``dtype`` allows, the most precise first."""
        variants = self._floats(_ENCODER, dtype)
        for runtime in self._runtimes.values():
            for name, floats in FLOAT_OF.items():
                known = self._exact_int8() and floats in runtime.floats
                asked = dtype in ("auto", name, name.partition("+")[0])
                if runtime.int8 and known and asked:
                    variants.append(Variant(runtime.name, name, checkpoint.INT8_GRAPH))
        return variants

    def _exact_int8(self) -> bool:
        """Return whether there are int8 graphs that were near enough to float32 at the export."""
        sizes = self._config.sizes
        names = [checkpoint.at_size(checkpoint.INT8_GRAPH, side, sizes[0]) for side in sizes]
        reasons = [refusal(self._listed[name]) for name in names if name in self._listed]
        if any(reasons):
            logger.warning("int8 is not used: %s", "; ".join(filter(None, reasons)))
        return checkpoint.INT8_GRAPH in self._listed and not any(reasons)

    def _opened(self, variant: Variant) -> Graph:
        runtime, name = self._runtimes[variant.runtime], variant.graph
        if stored := self._disk.read(variant.file):
            try:
                return runtime.restore(stored, variant.floats)
            except RuntimeError as error:
                logger.warning("a cached graph cannot be loaded and is compiled again: %s", error)
        checkpoint.verified_graph(self._directory, name, self._listed)
        path = self._path(name)
        # Again, because the runtime reads the file by its path: an export may have replaced it.
        check = partial(checkpoint.verified_graph, path.parent, name, self._listed)
        return runtime.open(path, variant.floats, check)

    def _keep(self, variant: Variant, opened: Graph) -> Graph:
        """Store a compiled graph on disk, unless it is there, and return it."""
        new = self._disk.usable and self._disk.read(variant.file) is None
        if new and (stored := opened.stored()):
            self._disk.write(variant.file, stored)
        return opened


def _click(config: SamClipConfig) -> list[NDArray]:
    """Return the inputs of the mask decoder for one click in random features."""
    shape = 1, config.embed_dim + config.fine_dim, config.grid, config.grid
    sam_1Dhw = np.random.default_rng(0).standard_normal(shape).astype(np.float16)
    return click(config, sam_1Dhw, (config.image_size / 2, config.image_size / 2))


def _runtimes(threads: int, streams: int) -> list[Runtime]:
    found: list[Runtime] = []
    if find_spec("openvino"):
        from samclip_core.engine.with_openvino import OpenVino

        found.append(OpenVino(threads, streams))
    with suppress(PackageNotFoundError):
        found.append(OnnxRuntime(threads or cores(), streams))
    return found
