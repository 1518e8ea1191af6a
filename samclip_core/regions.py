"""Regions: the masks of everything in a picture, each with a vector per head.

They are features like the encoder's outputs: computed once, cached, and compared with texts and
examples by dot products. R regions, s×s cells of the SAM head's low-resolution logits, D width of
the CLIP map, E width of the SAM embedding.
"""

import io
import zipfile
import zlib
from dataclasses import dataclass, fields
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

from samclip_core.geometry import FloatArray

REGIONS_VERSION = "1"
"""Part of the cache keys of regions: raise it when the same features would give other regions."""
MAX_REGIONS = 256
"""Most regions of a picture; SAM's full grid finds fewer in nearly every photograph."""
LARGEST_LOGIT = 64.0
"""Larger logits are stored as this one, at level 127. The level of a logit grows as its square
root, because an outline depends most on small logits."""
INNER_LOGIT = 20.0
"""Logit stored for all cells away from the outline: no mask depends on them, and equal cells
compress to almost nothing."""


@dataclass(frozen=True, eq=False)
class Regions:
    """The masks of everything in a picture, the best predicted IoU first.

    ``levels_Rss`` int8: logits as ``to_logits`` reads them, over the padded model frame.
    ``predicted_iou_R``, ``stability_R`` float32 in [0, 1]. ``box_R4`` float32: x_min, y_min, x_max,
    y_max in pixels of the original; ``area_R`` float32: share of the picture. ``clip_RD`` float16:
    the mean of the dense CLIP map's vectors under each mask, and ``clip_mean_D`` that of the whole
    picture, neither made of length 1; ``sam_RE`` float16: the same of the SAM embedding, of length
    1.
    """

    levels_Rss: NDArray[np.int8]
    predicted_iou_R: NDArray[np.float32]
    stability_R: NDArray[np.float32]
    box_R4: NDArray[np.float32]
    area_R: NDArray[np.float32]
    clip_RD: NDArray[np.float16]
    clip_mean_D: NDArray[np.float16]
    sam_RE: NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.levels_Rss)

    def logits(self, index: int) -> NDArray[np.float16]:
        """Return the logits of one region, s×s over the padded model frame."""
        return to_logits(self.levels_Rss[index]).astype(np.float16)

    def pack(self) -> bytes:
        """Return the regions as a compressed ``.npz`` file: an array per field."""
        file = io.BytesIO()
        np.savez_compressed(
            file, **{field.name: getattr(self, field.name) for field in fields(self)}
        )
        return file.getvalue()

    @classmethod
    def unpack(cls, packed: bytes | memoryview) -> Self:
        """Return the regions of a file that ``pack`` wrote. Raises ValueError for another one."""
        try:
            with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
                return cls(**{field.name: arrays[field.name] for field in fields(cls)})
        except (
            KeyError,
            AttributeError,
            TypeError,
            ValueError,
            EOFError,
            OSError,
            RuntimeError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise ValueError(f"not a file of regions: {error}") from error


def to_levels(logits_ss: FloatArray) -> NDArray[np.int8]:
    """Round logits to levels. No cell changes its side: above zero, or not."""
    logits_ss = np.asarray(logits_ss, np.float32)
    inside_ss = (logits_ss > 0).astype(np.uint8)
    along_ss = cv2.morphologyEx(inside_ss, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    kept_ss = np.where(along_ss, np.abs(logits_ss), np.float32(INNER_LOGIT)) / LARGEST_LOGIT
    size_ss = np.rint(127 * np.sqrt(np.minimum(kept_ss, 1))).astype(np.int8)
    return np.where(inside_ss, np.maximum(size_ss, 1), -size_ss)


def to_logits(levels_ss: NDArray[np.int8]) -> NDArray[np.float32]:
    """Return the logits of levels."""
    root_ss = levels_ss.astype(np.float32) / 127
    return np.asarray(LARGEST_LOGIT * root_ss * np.abs(root_ss), np.float32)
