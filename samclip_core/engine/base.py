"""What an engine is: the networks of a checkpoint as three functions of NumPy arrays.

B images, S side of the model frame, D width, h w grid, P prompts, N points, M masks, m side of a
low-resolution mask, T texts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from samclip_core.types import FloatArray

CACHE_DIR = Path("~/.cache/samclip/compiled")
"""Where compiled graphs are kept unless another folder is asked for."""
Part = Literal["image_encoder", "mask_decoder", "text_encoder"]
PARTS: tuple[Part, ...] = ("image_encoder", "mask_decoder", "text_encoder")
Dtype = Literal["float32", "bfloat16", "float16", "int8", "int8+bfloat16"]
"""A precision. int8 alone leaves some layers in float32, int8+bfloat16 leaves them in bfloat16."""
Asked = Literal["auto", "float32", "bfloat16", "float16", "int8", "int8+bfloat16"]
"""A precision to load: "int8" means the faster one of both, "auto" the fastest of all."""
EngineName = Literal["auto", "torch", "openvino"]

PADDING, NOT_OBJECT, OBJECT, BOX_MIN, BOX_MAX = -1, 0, 1, 2, 3
"""SAM's labels of points. The two corners of a box are points; prompts without a box end with one
point of padding."""


class Encoded(NamedTuple):
    """A batch after the image encoder; the CLIP vectors have length 1 along D."""

    sam_BDhw: FloatArray
    clip_dense_BDhw: FloatArray
    clip_pooled_BD: FloatArray


class PromptBatch(NamedTuple):
    """Prompts with the same number of points, in the model frame.

    ``image_P`` int64 is the row of the image that a prompt asks about; ``points_PN2`` float32 (x,
    y); ``labels_PN`` int64; ``masks_P1mm`` float32 logits, which count where ``has_mask_P``
    (float32) is 1.
    """

    image_P: NDArray[np.int64]
    points_PN2: NDArray[np.float32]
    labels_PN: NDArray[np.int64]
    masks_P1mm: NDArray[np.float32]
    has_mask_P: NDArray[np.float32]


class Engine(Protocol):
    """Threads may share an engine. Only the parts that were loaded may be used.

    ``dtype`` is the precision of the image encoder; everything else is float32. ``streams`` calls
    run at the same time, more wait. ``batches`` says whether one call with several images takes
    less time than one call for each. ``measured_ms`` is the time of one image in each precision
    that was tried; empty where nothing was to choose.
    """

    name: EngineName
    device: str
    dtype: Dtype
    streams: int
    batches: bool
    measured_ms: Mapping[Dtype, float]

    def encode(self, pixels_B3SS: NDArray[np.uint8], sizes_B2: NDArray[np.int64]) -> Encoded:
        """Encode padded RGB frames, of which the top-left (height, width) is image.

        Raises MemoryError where the device has not enough memory for so many.
        """

    def decode(
        self, sam_BDhw: FloatArray, prompts: PromptBatch
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return ``logits_PMmm`` and predicted ``iou_PM`` of all M = 4 masks of each prompt."""

    def embed_text(self, ids_TN: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embed token ids: ``text_TD``, rows of length 1."""
