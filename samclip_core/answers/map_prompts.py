"""Prompts for the SAM head from the dense CLIP map: SAM-CLIP's two heads in sequence.

All maps cover the model frame at the resolution of SAM's low-resolution logits: s×s cells, four per
side of an embedding cell. C classes, N components.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.dense import clip_side, upsampling
from samclip_core.answers.steps import Steps, Terms, questions
from samclip_core.geometry import FloatArray
from samclip_core.types import ImageFeatures, MaskSet, Prompt

MIN_AREA = 0.002
"""Smallest component that becomes a prompt, as a fraction of the picture."""
MAX_COMPONENTS = 64
"""Most prompts per image, to bound the SAM head's work; the largest components are kept."""
_MASK_PROMPT_LIMIT = 2.0
"""Log-odds in a mask prompt are clipped to ±this: a class map shows the place, not the outline."""


@dataclass(frozen=True, eq=False)
class Component:
    """One connected piece of the region that a class won in the dense CLIP map.

    ``region_ss`` is bool; ``score`` is the mean probability of the class over it; ``prompt`` is in
    pixels of the model frame.
    """

    index: int
    score: float
    region_ss: NDArray[np.bool_]
    prompt: Prompt


def logits_side(features: ImageFeatures) -> int:
    """Return s, the side of the SAM head's low-resolution logits for these features."""
    return 4 * features.output("SAM").shape[-1]


def to_logits_frame(
    features: ImageFeatures, maps_Chw: FloatArray, side: int
) -> NDArray[np.float32]:
    """Resample maps over the valid CLIP cells to C×s×s: bilinear, zero in the padding."""
    valid_h, valid_w = features.geometry.grid(side)
    rows, columns = upsampling(features.geometry, clip_side(features), valid_h, valid_w)
    maps_Css = np.zeros((len(maps_Chw), side, side), np.float32)
    maps_Css[:, :valid_h, :valid_w] = rows @ maps_Chw @ columns
    return maps_Css


def find_components(
    features: ImageFeatures, probability_Css: FloatArray, won_Css: NDArray[np.bool_]
) -> list[Component]:
    """Return the 8-connected pieces of each class's region, largest first, with their prompts.

    A prompt consists of the piece's box, its most probable point and the map of its class.
    """
    geometry = features.geometry
    side = probability_Css.shape[-1]
    rows, columns = geometry.grid(side)
    min_cells = max(1.0, MIN_AREA * rows * columns)
    found = []
    for index, won_ss in enumerate(won_Css):
        _, piece_ss, stats, _ = cv2.connectedComponentsWithStats(won_ss.astype(np.uint8))
        for piece, area in enumerate(stats[1:, cv2.CC_STAT_AREA], start=1):
            if area >= min_cells:
                found.append((int(area), index, piece_ss == piece))
    found.sort(key=lambda item: -item[0])
    cell = geometry.size / side
    limit_xy = np.array([geometry.input_width, geometry.input_height])
    return [
        Component(
            index,
            float(probability_Css[index][region_ss].mean()),
            region_ss,
            _prompt(probability_Css[index], region_ss, cell, limit_xy),
        )
        for _, index, region_ss in found[:MAX_COMPONENTS]
    ]


MAX_POINTS, MAX_PIECES = 4, 3
"""Most maxima and pieces of a text's map that prompt the SAM head."""
RISE = 0.6
"""Maxima and pieces have at least this fraction of the way from the map's median to its maximum, so
that it does not matter in which range a model's cosines are."""
SPACING = 0.05
"""Least distance between two maxima, as a fraction of the model frame."""


def highest_points(
    features: ImageFeatures,
    map_ss: FloatArray,
    allowed_ss: NDArray[np.bool_],
    level: float,
    most: int,
) -> list[tuple[float, float]]:
    """Return the highest cells from ``level`` on that are apart, in pixels of the model frame."""
    geometry, side = features.geometry, len(map_ss)
    left_ss = np.where(allowed_ss & (map_ss >= level), map_ss, -np.inf)
    cell = geometry.size / side
    y_s1, x_s = np.arange(side)[:, None], np.arange(side)
    points: list[tuple[float, float]] = []
    while len(points) < most and np.isfinite(left_ss.max()):
        y, x = divmod(int(left_ss.argmax()), side)
        point = (
            min((x + 0.5) * cell, geometry.input_width),
            min((y + 0.5) * cell, geometry.input_height),
        )
        points.append(point)
        left_ss[(y_s1 - y) ** 2 + (x_s - x) ** 2 <= (SPACING * side) ** 2] = -np.inf
    return points


def prompts_of(
    features: ImageFeatures, map_ss: FloatArray, allowed_ss: NDArray[np.bool_]
) -> tuple[list[Prompt], list[Prompt]]:
    """Return prompts for the object of a map: at its maxima, and for the pieces around these.

    In pixels of the model frame. A piece is seldom ambiguous, a maximum mostly is.
    """
    rows, columns = features.geometry.grid(len(map_ss))
    low = float(np.median(map_ss[:rows, :columns]))
    level = low + RISE * (float(map_ss[allowed_ss].max()) - low)
    points = highest_points(features, map_ss, allowed_ss, level, MAX_POINTS)
    probability_ss = 1 / (1 + np.exp(level - map_ss))
    above_ss = allowed_ss & (map_ss >= level)
    pieces = find_components(features, probability_ss[None], above_ss[None])[:MAX_PIECES]
    return [Prompt(points=(point,)) for point in points], [piece.prompt for piece in pieces]


def _prompt(
    probability_ss: FloatArray, region_ss: NDArray[np.bool_], cell: float, limit_xy: FloatArray
) -> Prompt:
    y_N, x_N = np.nonzero(region_ss)
    best = int(probability_ss[y_N, x_N].argmax())
    low_xy = np.array([x_N.min(), y_N.min()]) * cell
    high_xy = np.minimum(np.array([x_N.max() + 1, y_N.max() + 1]) * cell, limit_xy)
    point_xy = np.minimum((np.array([x_N[best], y_N[best]]) + 0.5) * cell, limit_xy)
    return Prompt(
        points=((float(point_xy[0]), float(point_xy[1])),),
        box=(float(low_xy[0]), float(low_xy[1]), float(high_xy[0]), float(high_xy[1])),
        mask_input_hw=mask_prompt(probability_ss),
    )


def mask_prompt(probability_ss: FloatArray) -> NDArray[np.float32]:
    """Return the map of a class as the log-odds of a mask."""
    clipped_ss = np.clip(probability_ss, 1e-4, 1 - 1e-4)
    logits_ss = np.log(clipped_ss / (1 - clipped_ss)).astype(np.float32)
    return np.asarray(logits_ss.clip(-_MASK_PROMPT_LIMIT, _MASK_PROMPT_LIMIT))


@dataclass(frozen=True, eq=False)
class RefinedMask:
    """The SAM head's mask of a component, or the component itself if the mask is not trusted."""

    component: Component
    logits_ss: NDArray[np.float32]
    predicted_iou: float
    stability: float
    trusted: bool


def segment_components(
    terms: Terms, features: ImageFeatures, components: Sequence[Component]
) -> Steps[list[RefinedMask]]:
    """Return in steps one mask per component, from the SAM head."""
    # The head enlarges masks to the picture's size. With the model frame as the picture, its time
    # and memory do not depend on the size of the photograph.
    in_frame = replace(features, geometry=features.geometry.model_frame)
    prompts = [component.prompt for component in components]
    refined: list[RefinedMask] = []
    for question in questions(in_frame, prompts, multimask=False, at_once=terms.at_once):
        batch = components[len(refined) : len(refined) + len(question.prompts)]
        refined += [
            _refined(component, masks, terms.min_predicted_iou)
            for component, masks in zip(batch, (yield question), strict=True)
        ]
    return refined


def _refined(component: Component, masks: MaskSet, min_predicted_iou: float) -> RefinedMask:
    predicted_iou, stability = float(masks.predicted_iou_M[0]), float(masks.stability_M[0])
    trusted = predicted_iou >= min_predicted_iou
    own_ss = np.where(component.region_ss, 1, -1).astype(np.float32)
    logits_ss = masks.logits_Mhw[0] if trusted else own_ss
    return RefinedMask(component, logits_ss, predicted_iou, stability, trusted)
