"""Semantic segmentation: the dense CLIP map against labels, alone or refined by the SAM head.

With ``background``, a pixel is background when no label wins clearly:

1. one of the background words (see ``samclip_core.answers.dense``) wins it, or
2. the winner's probability is below 1/C + ``CLEAR_WIN`` · (1 − 1/C), barely above chance among the
   C classes (the labels, plus one for all background words).

A single label without background words has no competitor and wins every pixel.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from samclip_core.answers import proxy_attention
from samclip_core.answers.dense import (
    STRIP_VALUES,
    background_words,
    clip_side,
    cosine_maps,
    upsampling,
    work_size,
)
from samclip_core.answers.map_prompts import (
    Component,
    RefinedMask,
    find_components,
    logits_side,
    segment_components,
    to_logits_frame,
)
from samclip_core.answers.request import Output, Request, for_masks, rows_of
from samclip_core.answers.steps import Steps, Terms
from samclip_core.answers.tiles import (
    NO_TILES,
    Part,
    Tiling,
    check_mosaic,
    check_tiles,
    encodings,
    mosaic,
)
from samclip_core.answers.zero_shot import check_labels, softmax
from samclip_core.config import SamClipConfig
from samclip_core.errors import InvalidRequest
from samclip_core.geometry import FloatArray, Geometry
from samclip_core.types import ImageFeatures, Region, SemanticMap

CLEAR_WIN = 0.1
"""Least margin of a winner, from chance (0) to certainty (1); below it the pixel is background."""

MANY_CLASSES = 16
"""From this many classes, the values of a pixel are contiguous in memory: five times faster for
1,024 classes, but slower for few."""

BestOf = Callable[[FloatArray], tuple[NDArray[np.intp], FloatArray]]


@dataclass(frozen=True)
class SegmentText(Request[SemanticMap]):
    """Which of the labels has each pixel? With ``background``, possibly none.

    ``refine`` sharpens the outlines with the SAM head. The maps of tiles become one.
    """

    labels: Sequence[str]
    background: bool = False
    refine: bool = False
    tiling: Tiling = NO_TILES

    def outputs(self, config: SamClipConfig) -> tuple[Output, ...]:
        if self.refine:
            return ("CLIP_DENSE", *for_masks(config))
        return proxy_attention.outputs(config)

    @property
    def texts(self) -> Sequence[str]:
        """The labels, then the background words if there is a background."""
        return (*self.labels, *(background_words(self.labels) if self.background else ()))

    def size(self, config: SamClipConfig) -> int:
        """Return the side of the frame; refinement reads both heads' maps of one encoding."""
        return config.image_size if self.refine else config.size_of("semantic")

    def program(self, config: SamClipConfig, terms: Terms) -> Steps[SemanticMap]:
        check_tiles(self.tiling.tiles, self.tiling.most)
        if self.tiling.is_wanted and self.refine:
            raise InvalidRequest("tiles and refine exclude each other: leave one of them out")
        encoding = self.encoding(config, self.asked)
        whole = yield encoding
        parts: list[Part] = [(None, whole)]
        if crops := self.tiling.crops(whole.geometry):
            check_mosaic(crops, len(self.texts), whole)
        for crop, of_tile in encodings(crops, encoding):
            parts.append((crop, (yield of_tile)))
        text_XD = yield from rows_of(self.asked)
        yield None
        if not crops:
            return (yield from self.steps(whole, text_XD, config, terms))
        logits = partial(self.logits, text_XD=text_XD, config=config)
        geometry, maps_Chw = yield from mosaic(parts, logits)
        return (yield from self.decide(geometry, maps_Chw, geometry.size))

    def steps(
        self, features: ImageFeatures, text_XD: FloatArray, config: SamClipConfig, terms: Terms
    ) -> Steps[SemanticMap]:
        if self.refine:
            return (yield from self._refined(features, text_XD, config.logit_scale, terms))
        attended = proxy_attention.attend(features, config.fitted.attention)
        return (yield from self.of_dense_map(attended, text_XD, config.logit_scale))

    def of_dense_map(
        self, features: ImageFeatures, text_XD: FloatArray, logit_scale: float
    ) -> Steps[SemanticMap]:
        """Label every pixel from the dense CLIP map: softmax of ``logit_scale`` × cosine.

        The logits are upsampled bilinearly before the decision.
        """
        logits_Chw = logit_scale * self._cosines(features, text_XD)
        return (yield from self.decide(features.geometry, logits_Chw, clip_side(features)))

    def logits(
        self, features: ImageFeatures, text_XD: FloatArray, config: SamClipConfig
    ) -> NDArray[np.float32]:
        """Return the logits of each class in the cells of a picture that hold picture, C×h×w."""
        attended = proxy_attention.attend(features, config.fitted.attention)
        return np.asarray(config.logit_scale * self._cosines(attended, text_XD), np.float32)

    def decide(self, geometry: Geometry, logits_Chw: FloatArray, side: int) -> Steps[SemanticMap]:
        """Label every pixel from logits in the cells of a square grid that hold picture."""
        classes = len(logits_Chw)
        floor = _floor(classes) if self.background else 0.0
        winner_HW, sum_C = yield from _decide(geometry, logits_Chw, side, _best_of_logits, floor)
        return _semantic_map(geometry, winner_HW, sum_C, np.arange(classes), self.labels)

    def _refined(
        self, features: ImageFeatures, text_XD: FloatArray, logit_scale: float, terms: Terms
    ) -> Steps[SemanticMap]:
        """Label every pixel as ``of_dense_map`` does, with outlines from the SAM head.

        Each connected piece of a label's region is segmented with its box, its most probable point
        and the map of its class as prompt. If the mask's predicted IoU is high enough, the mask
        times the piece's mean probability replaces the CLIP map; then the best class wins each
        pixel.
        """
        cosine_Chw = self._cosines(features, text_XD)
        probability_Chw = softmax(logit_scale * cosine_Chw)
        # Classes that win no cell are left out, so that memory stays bounded for many labels.
        class_C = np.unique(probability_Chw.argmax(axis=0))
        probability_Css = to_logits_frame(features, probability_Chw[class_C], logits_side(features))
        won_ss = np.where(probability_Css.any(axis=0), probability_Css.argmax(axis=0), -1)
        won_Css = won_ss == np.arange(len(class_C))[:, None, None]
        won_Css[class_C >= len(self.labels)] = False  # background words are not refined
        components = self.pieces(features, probability_Css, won_Css)
        refined = yield from segment_components(terms, features, components)
        _take_over(probability_Css, refined)
        side = probability_Css.shape[-1]
        rows, columns = features.geometry.grid(side)
        winner_HW, sum_C = yield from _decide(
            features.geometry,
            probability_Css[:, :rows, :columns],
            side,
            _best_of_probabilities,
            _floor(len(cosine_Chw)) if self.background else 0.0,
        )
        return _semantic_map(features.geometry, winner_HW, sum_C, class_C, self.labels)

    def pieces(
        self, features: ImageFeatures, probability_Css: FloatArray, won_Css: NDArray[np.bool_]
    ) -> list[Component]:
        """Return what the SAM head outlines, with its prompts."""
        return find_components(features, probability_Css, won_Css)

    def _cosines(self, features: ImageFeatures, text_XD: FloatArray) -> NDArray[np.float32]:
        check_labels(self.labels)
        text_LD, background_KD = np.split(text_XD, [len(self.labels)])
        return cosine_maps(features, text_LD, background_KD if len(background_KD) else None)


def _floor(classes: int) -> float:
    """Return the probability below which a winner is background; 0 for a single class."""
    return 1 / classes + CLEAR_WIN * (1 - 1 / classes) if classes > 1 else 0.0


def _take_over(probability_Css: FloatArray, masks: Sequence[RefinedMask]) -> None:
    """Replace the CLIP map by the trusted masks over their pieces, in place."""
    trusted = [mask for mask in masks if mask.trusted]
    for mask in trusted:
        probability_Css[mask.component.index][mask.component.region_ss] = 0
    for mask in trusted:
        own_ss = probability_Css[mask.component.index]
        sigmoid_ss = 1 / (1 + np.exp(-mask.logits_ss.clip(-30, 30)))
        np.maximum(own_ss, sigmoid_ss * mask.component.score, out=own_ss)


def _best_of_logits(logits_CHW: FloatArray) -> tuple[NDArray[np.intp], FloatArray]:
    highest_HW = logits_CHW.max(axis=0)
    return logits_CHW.argmax(axis=0), 1 / np.exp(logits_CHW - highest_HW).sum(axis=0)


def _best_of_probabilities(probability_CHW: FloatArray) -> tuple[NDArray[np.intp], FloatArray]:
    return probability_CHW.argmax(axis=0), probability_CHW.max(axis=0)


def _decide(
    geometry: Geometry, maps_Chw: FloatArray, side: int, best_of: BestOf, floor: float
) -> Steps[tuple[NDArray[np.int16], NDArray[np.float64]]]:
    """Return each pixel's winning class (-1 below ``floor``), and each class's mean probability.

    Each step decides one strip, at ``work_size``.
    """
    height, width = work_size(geometry)
    rows_Hh, columns_wW = upsampling(geometry, side, height, width)
    classes = len(maps_Chw)
    winner_HW = np.empty((height, width), np.int16)
    count_C, sum_C = np.zeros(classes), np.zeros(classes)
    step = max(1, STRIP_VALUES // (classes * width))
    many = classes >= MANY_CLASSES
    maps_hwC = np.ascontiguousarray(np.moveaxis(maps_Chw, 0, -1)) if many else None
    for top in range(0, height, step):
        rows_sh = rows_Hh[top : top + step]
        if maps_hwC is None:
            values_CsW = rows_sh @ maps_Chw @ columns_wW
        else:
            values_sWC = columns_wW.T @ np.tensordot(rows_sh, maps_hwC, axes=1)
            values_CsW = np.moveaxis(values_sWC, -1, 0)
        winner_sW, probability_sW = best_of(values_CsW)
        clear = probability_sW >= floor
        winner_HW[top : top + step] = np.where(clear, winner_sW, -1)
        count_C += np.bincount(winner_sW[clear], minlength=classes)
        sum_C += np.bincount(winner_sW[clear], probability_sW[clear], minlength=classes)
        yield None
    return winner_HW, sum_C / np.maximum(count_C, 1)


def _semantic_map(
    geometry: Geometry,
    winner_HW: NDArray[np.int16],
    score_C: NDArray[np.float64],
    class_C: NDArray[np.integer],
    labels: Sequence[str],
) -> SemanticMap:
    """Turn winners, indices into ``class_C``, into labels; classes past ``labels`` are -1."""
    label_C = np.append(np.where(class_C < len(labels), class_C, -1), -1).astype(np.int16)
    label_map_HW = label_C[winner_HW]
    size_wh = (geometry.width, geometry.height)
    if label_map_HW.shape != (geometry.height, geometry.width):
        label_map_HW = cv2.resize(label_map_HW, size_wh, interpolation=cv2.INTER_NEAREST_EXACT)
    area_L = np.zeros(len(labels) + 1, np.int64)
    flat_N = label_map_HW.reshape(-1)
    for start in range(0, len(flat_N), STRIP_VALUES):  # bincount converts to int64
        area_L += np.bincount(flat_N[start : start + STRIP_VALUES] + 1, minlength=len(area_L))
    regions = [
        Region(labels[index], float(score), int(index), int(area_L[index + 1]), label_map_HW)
        for index, score in zip(label_C[:-1], score_C, strict=True)
        if index >= 0 and area_L[index + 1]
    ]
    regions.sort(key=lambda region: -region.area)
    return SemanticMap(label_map_HW, tuple(regions))
