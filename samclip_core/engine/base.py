"""The engine interface: the networks of a checkpoint as three functions of NumPy arrays.

Shape letters: B images, S side of the model frame, D width, h w grid, P prompts, N points, M masks,
m side of a low-resolution mask, T texts.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from samclip_core.geometry import FloatArray

CACHE_DIR = Path("~/.cache/samclip/compiled")
"""Default folder for compiled graphs."""
Network = Literal["image_encoder", "mask_decoder", "text_encoder"]
PARTS: tuple[Network, ...] = ("image_encoder", "mask_decoder", "text_encoder")
Dtype = Literal["float32", "bfloat16", "float16", "int8", "int8+bfloat16"]
"""A precision. int8 keeps some layers in float32, int8+bfloat16 keeps them in bfloat16."""
DtypeChoice = Literal["auto", Dtype]
"""A precision to load: "int8" selects the faster of the two, "auto" the fastest of all."""
EngineName = Literal["auto", "torch", "openvino", "onnxruntime"]
"""The runtime of the networks; "auto" lets the engine choose."""


class Encoded(NamedTuple):
    """The image encoder's output for a batch; the CLIP vectors have unit length along D.

    ``sam_BDhw`` is None if the checkpoint has no masks, ``fine_BDhw`` if these need no finer maps;
    a graph then has the other outputs alone.
    """

    sam_BDhw: FloatArray | None
    clip_dense_BDhw: FloatArray
    clip_pooled_BD: FloatArray
    fine_BDhw: FloatArray | None = None

    @classmethod
    def of(cls, outputs: Iterable[FloatArray]) -> Self:
        """Return the outputs that a network or graph has, in this order."""
        several = [*outputs]
        return cls(*several) if len(several) > 2 else cls(None, *several)


def of_both(sam: FloatArray, fine: FloatArray | None) -> FloatArray:
    """Return the image embedding with the finer maps, if any, as further channels: D, h and w."""
    return sam if fine is None else np.concatenate([sam, fine], axis=-3)


class PromptBatch(NamedTuple):
    """Prompts with the same number of points, in the model frame.

    ``image_P`` int64 is the row of each prompt's image; ``points_PN2`` float32 (x, y);
    ``labels_PN`` int64; ``masks_P1mm`` float32 logits, used only where ``has_mask_P`` (float32) is
    1.
    """

    image_P: NDArray[np.int64]
    points_PN2: NDArray[np.float32]
    labels_PN: NDArray[np.int64]
    masks_P1mm: NDArray[np.float32]
    has_mask_P: NDArray[np.float32]


class Engine(Protocol):
    """Parts of a checkpoint, loaded on a device. Thread-safe.

    ``names`` has the runtime of each part. ``dtype`` is the precision of the image encoder,
    ``decoder_dtype`` that of the mask decoder; the text encoder is float32. ``streams`` calls run
    concurrently, further calls wait. ``batches`` is whether one call with several images takes less
    time than one call per image. ``measured_ms`` is the time per image in each runtime and
    precision that was tried, as in "openvino bfloat16"; empty if there was no choice. ``graphs`` is
    the digest of the checkpoint's graphs; empty if the engine runs none.
    """

    names: Mapping[Network, EngineName]
    device: str
    dtype: Dtype
    decoder_dtype: Dtype
    streams: int
    batches: bool
    measured_ms: Mapping[str, float]
    graphs: str

    def encode(self, pixels_B3SS: NDArray[np.uint8], sizes_B2: NDArray[np.int64]) -> Encoded:
        """Encode padded RGB frames; the image is the top-left (height, width) of its frame.

        Raises MemoryError if the batch does not fit into the device's memory, and InvalidRequest if
        the engine has no graph for this side of the frame.
        """

    def decode(
        self, sam_BDhw: FloatArray, prompts: PromptBatch
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return ``logits_PMmm`` and predicted ``iou_PM`` of all M = 4 masks per prompt.

        ``sam_BDhw`` are ``of_both``. ``iou_PM`` has a column more, is there an object, of a family
        that ``scores_objects``.
        """

    def embed_text(self, ids_TN: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embed token ids; return ``text_TD``, rows of unit length."""


class Graph(Protocol):
    """A graph that a runtime has opened. Thread-safe."""

    def run(self, *inputs: NDArray) -> list[NDArray[Any]]:
        """Run the graph for one image, one prompt or some texts; image features are float16."""

    def stored(self) -> bytes:
        """Return what ``Runtime.restore`` reads faster than the graph; empty if nothing is."""


class Runtime(Protocol):
    """A library that runs exported graphs on a CPU.

    ``floats`` are its floating-point precisions there, the highest first; ``int8`` is whether it
    also runs graphs in int8.
    """

    name: EngineName
    floats: Sequence[Dtype]
    int8: bool

    def open(self, path: Path, floats: Dtype, check: Callable[[], object]) -> Graph:
        """Open a graph, calling ``check`` when its file has been read.

        Float layers compute in ``floats``. Raises RuntimeError if the runtime cannot run it here,
        and what ``check`` raises.
        """

    def restore(self, stored: bytes, floats: Dtype) -> Graph:
        """Open what ``Graph.stored`` returned. Raises RuntimeError if it does not fit."""
