"""Every object in a picture: masks from a grid of points, filtered and labelled.

Masks remain low-resolution logits and are enlarged one at a time on access, so memory depends on
the number of masks kept, not on the size of the picture. M masks, N points, s×s cells.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.dense import clip_side, valid_cells
from samclip_core.answers.steps import Steps, Terms, questions, run
from samclip_core.answers.zero_shot import check_labels, softmax
from samclip_core.geometry import FloatArray, Geometry
from samclip_core.io.masks import mask_box
from samclip_core.types import EverythingMask, ImageFeatures, MaskHead, Prompt


@dataclass(frozen=True, kw_only=True)
class EverythingSettings:
    """The criteria for keeping a mask."""

    min_predicted_iou: float | None = None
    min_stability: float | None = None
    """None, here or in ``min_predicted_iou``: the SAM head's threshold."""
    max_box_iou: float = 0.7
    """Of two masks whose boxes overlap more, only the one with the better predicted IoU is kept."""
    min_area: float = 0.0005
    """Smallest mask, island or hole, as a fraction of the picture."""
    points_per_call: int = 64
    """Duplicates are dropped after this many points, which bounds memory."""


DEFAULT = EverythingSettings()


def segment_everything(
    sam_head: MaskHead,
    features: ImageFeatures,
    points_per_side: int,
    settings: EverythingSettings = DEFAULT,
) -> list[EverythingMask]:
    """Return the masks from an even grid of ``points_per_side`` squared points, largest first.

    ``features`` need the SAM embedding. Raises ValueError if ``points_per_side`` is below 1.
    """
    terms = Terms.of(sam_head, settings.points_per_call)
    return run(everything_steps(terms, features, points_per_side, settings), sam_head)


def everything_steps(
    terms: Terms,
    features: ImageFeatures,
    points_per_side: int,
    settings: EverythingSettings = DEFAULT,
) -> Steps[list[EverythingMask]]:
    """Run ``segment_everything`` in steps; the result does not depend on ``terms.at_once``."""
    if points_per_side < 1:
        raise ValueError(f"points_per_side is {points_per_side}, expected at least 1")
    # The head enlarges masks to the picture's size. With the model frame as the picture, its time
    # and memory do not depend on the size of the photograph.
    frame = features.geometry.model_frame
    in_frame = replace(features, geometry=frame)
    points_N2 = _grid_points(frame, points_per_side)
    min_iou, min_stability = (
        default if value is None else value
        for value, default in (
            (settings.min_predicted_iou, terms.min_predicted_iou),
            (settings.min_stability, terms.min_stability),
        )
    )
    kept: list[EverythingMask] = []
    for start in range(0, len(points_N2), settings.points_per_call):
        chunk = points_N2[start : start + settings.points_per_call]
        prompts = [Prompt(points=((float(x), float(y)),)) for x, y in chunk]
        for question in questions(in_frame, prompts, multimask=True, at_once=terms.at_once):
            for masks in (yield question):
                good_M = (masks.predicted_iou_M >= min_iou) & (masks.stability_M >= min_stability)
                for index in np.flatnonzero(good_M):
                    logits_ss = _without_specks(masks.logits_Mhw[index], frame, settings.min_area)
                    iou, stability = masks.predicted_iou_M[index], masks.stability_M[index]
                    if logits_ss is not None:
                        found = EverythingMask(
                            features.geometry, logits_ss, float(iou), float(stability)
                        )
                        kept.append(found)
        # After every chunk, so that memory holds at most the kept masks and one chunk.
        quality_M = [mask.predicted_iou for mask in kept]
        kept = drop_duplicates(kept, quality_M, settings.max_box_iou)
    return sorted(kept, key=lambda mask: -_inside(mask).sum())


def drop_duplicates(
    masks: Sequence[EverythingMask], quality_M: Sequence[float], max_box_iou: float = 0.7
) -> list[EverythingMask]:
    """Apply non-maximum suppression to the masks' boxes; return the kept masks, best first."""
    if not masks:
        return []
    boxes_M4 = np.array([mask_box(_inside(mask)) for mask in masks], float)  # in cells
    boxes_M4[:, 2:] -= boxes_M4[:, :2]  # width and height
    above_M = [quality - min(quality_M) + 1 for quality in quality_M]  # OpenCV needs scores > 0
    return [masks[index] for index in cv2.dnn.NMSBoxes(boxes_M4.tolist(), above_M, 0, max_box_iou)]


def name_masks(
    masks: Sequence[EverythingMask],
    features: ImageFeatures,
    text_LD: FloatArray,
    labels: Sequence[str],
    logit_scale: float,
) -> list[EverythingMask]:
    """Return the masks, each with its most likely label and that label's probability.

    A mask's embedding is the mean of the dense CLIP map under it. Raises InvalidLabels.
    """
    return list(naming(masks, features, text_LD, labels, logit_scale))


def naming(
    masks: Sequence[EverythingMask],
    features: ImageFeatures,
    text_LD: FloatArray,
    labels: Sequence[str],
    logit_scale: float,
) -> Iterator[EverythingMask]:
    """Yield the masks of ``name_masks`` one at a time."""
    check_labels(labels)
    dense_Dhw = valid_cells(features)
    _, rows, columns = dense_Dhw.shape
    side = clip_side(features)
    for mask in masks:
        inside_ss = (mask.logits_hw > 0).astype(np.float32)
        share_hw = cv2.resize(inside_ss, (side, side), interpolation=cv2.INTER_AREA)
        pooled_D = np.tensordot(dense_Dhw, share_hw[:rows, :columns], axes=2)
        pooled_D /= max(float(np.linalg.norm(pooled_D)), 1e-6)
        probability_L = softmax(logit_scale * (text_LD.astype(np.float32) @ pooled_D))
        best = int(probability_L.argmax())
        yield replace(mask, label=labels[best], label_score=float(probability_L[best]))


def _grid_points(geometry: Geometry, points_per_side: int) -> NDArray[np.float64]:
    """Return N×2 (x, y): the centres of a points_per_side² division of the picture."""
    fraction = (np.arange(points_per_side) + 0.5) / points_per_side
    x, y = np.meshgrid(fraction * geometry.width, fraction * geometry.height)
    return np.stack([x.reshape(-1), y.reshape(-1)], axis=1)


def _inside(mask: EverythingMask) -> NDArray[np.bool_]:
    """Return the mask over the valid cells of its logits."""
    rows, columns = mask.geometry.grid(mask.logits_hw.shape[-1])
    return mask.logits_hw[:rows, :columns] > 0


def _without_specks(
    logits_ss: NDArray[np.float32], geometry: Geometry, min_area: float
) -> NDArray[np.float32] | None:
    """Remove small islands and fill small holes; return None if nothing is left."""
    rows, columns = geometry.grid(logits_ss.shape[-1])
    cleaned_ss = logits_ss.copy()
    valid_hw = cleaned_ss[:rows, :columns]
    min_cells = min_area * rows * columns
    for sign in (-1, 1):  # holes first: they count towards their island's area
        side_hw = (sign * valid_hw > 0).astype(np.uint8)
        _, piece_hw, stats, _ = cv2.connectedComponentsWithStats(side_hw)
        small = stats[:, cv2.CC_STAT_AREA] < min_cells
        small[0] = False
        valid_hw[small[piece_hw]] = -sign
    return cleaned_ss if (valid_hw > 0).any() else None
