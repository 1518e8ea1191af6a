"""How far a graph in int8 may differ from the float graph that it was made from.

Shape letters as in ``base``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from samclip_core.config import SamClipConfig
from samclip_core.engine.base import of_both
from samclip_core.engine.choice import agreement, click, noise

PHOTOGRAPHS = 16
"""Maximum number of photographs that are compared, evenly chosen."""
PLACES = (0.3, 0.5, 0.7)
"""Where a photograph is clicked, as fractions of its sides."""
COSINE, MASK_IOU, ON_NOISE = "cosine", "mask_iou", "agreement"
LEAST = {COSINE: 0.95, MASK_IOU: 0.8}
"""Below this cosine, more than a tenth of the features' energy is error, and below this overlap, a
fifth of two masks' pixels. On ``edge``, steps 16 times as coarse have an overlap of 0.69."""


class Session(Protocol):
    """ONNX Runtime's session."""

    def run(self, names: None, inputs: Mapping[str, NDArray]) -> list[NDArray[Any]]:
        """Return all outputs."""


def compared(
    int8: Session,
    exact: Session,
    photographs: Sequence[Mapping[str, NDArray]],
    decoder: Session | None,
    config: SamClipConfig,
) -> dict[str, float]:
    """Return the agreement of two image encoders, for the manifest.

    ``ON_NOISE``: cosine of their outputs for random pixels, which a machine repeats at load.
    ``COSINE``: mean over the photographs of that of the least similar output. ``MASK_IOU``: mean
    overlap of the masks of clicks, if there is a ``decoder``.
    """
    side = photographs[0]["pixels"].shape[-1]
    pixels_13SS, sizes_12 = noise(side)
    random: dict[str, NDArray] = {"pixels": pixels_13SS, "sizes": sizes_12}
    found = {ON_NOISE: agreement(int8.run(None, random), exact.run(None, random))}
    cosines, overlaps = list[float](), list[float]()
    for given in photographs[:: -(-len(photographs) // PHOTOGRAPHS)]:
        both = int8.run(None, given), exact.run(None, given)
        cosines.append(agreement(*both))
        if decoder is not None:
            maps = (of_both(each[0], each[3] if config.fine_dim else None) for each in both)
            one, other = (_masks(decoder, config, sam, given["sizes"][0]) for sam in maps)
            union_P = (one | other).sum(axis=1)
            overlaps += [*((one & other).sum(axis=1) / union_P)[union_P > 0]]
    found[COSINE] = float(np.mean(cosines))
    if overlaps:
        found[MASK_IOU] = float(np.mean(overlaps))
    return {name: round(float(value), 4) for name, value in found.items()}


def _masks(
    decoder: Session, config: SamClipConfig, sam_1Dhw: NDArray, size_2: NDArray[np.int64]
) -> NDArray[np.bool_]:
    height, width = size_2 * (config.prompt_size // config.image_size)
    names = ("sam", "image", "points", "labels", "masks", "has_mask")
    rows = []
    for place in PLACES:
        inputs = click(config, sam_1Dhw.astype(np.float32), (place * width, place * height))
        logits_1Mmm, iou_1M = decoder.run(None, dict(zip(names, inputs, strict=True)))
        rows.append(logits_1Mmm[0, iou_1M[0].argmax()].reshape(-1) > 0)
    return np.stack(rows)


def refusal(agreed: Mapping[str, Any]) -> str:
    """Return why a graph with this agreement is not served; empty if it is.

    Graphs of earlier exports have that on random pixels alone, which is lower than on photographs.
    """
    known = {COSINE: agreed.get(ON_NOISE, 0.0), **agreed}
    low = [name for name, least in LEAST.items() if not known.get(name, 1.0) >= least]
    return ", ".join(f"{name} {known[name]}, expected {LEAST[name]} or more" for name in low)
