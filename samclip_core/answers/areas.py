"""Parts of a picture, a box or a mask: embedded in the space of texts, classified and named.

The embedding of a part is the mean of the dense CLIP map under it. A part needs no encoding of its
own: the cells already know their surroundings. D width, h w valid cells, H W pixels, s×s cells of a
map and t×t of logits over the padded model frame, L labels.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.dense import clip_side, valid_cells
from samclip_core.answers.request import Output, Request, of_part
from samclip_core.answers.steps import Steps, Terms, Texts, gathered
from samclip_core.answers.zero_shot import check_labels, classify, pooled, softmax, unit
from samclip_core.config import SamClipConfig
from samclip_core.errors import InvalidRequest
from samclip_core.geometry import FloatArray, Geometry
from samclip_core.io.masks import Runs, find_runs
from samclip_core.types import Box, EverythingMask, ImageFeatures, Prompt, Score


@dataclass(frozen=True, eq=False)
class Area:
    """A part of a picture: either a box, or the runs of a mask of the picture's size."""

    box: Box | None = None
    mask: Runs | None = None

    @classmethod
    def of_mask(cls, mask_HW: NDArray[np.bool_]) -> Self:
        """Return the area of a mask."""
        return cls(mask=find_runs(mask_HW))

    def validate(self, geometry: Geometry) -> None:
        """Raise InvalidRequest unless this is one area inside a picture of that size."""
        if (self.box is None) == (self.mask is None):
            raise InvalidRequest("an area is either a box or a mask: give one of them")
        if self.box is not None:
            Prompt(box=self.box).validate(geometry)
        if self.mask is not None:
            check_mask(self.mask, geometry)


def check_mask(mask: Runs, geometry: Geometry) -> None:
    """Raise InvalidRequest unless the mask has pixels and the size of the picture."""
    if (mask.height, mask.width) != (geometry.height, geometry.width):
        raise InvalidRequest(
            f"the mask has {mask.width}×{mask.height} pixels, the image {geometry.width}×"
            f"{geometry.height}: give a mask of the image's size"
        )
    if not len(mask.start_K):
        raise InvalidRequest("the mask is empty: give one that has pixels")


def embed_areas(features: ImageFeatures, areas: Iterable[Area]) -> Iterator[NDArray[np.float32]]:
    """Yield the embedding of each area, D of length 1. Raises InvalidRequest with its number."""
    for index, area in enumerate(areas):
        with of_part(f"area {index}"):
            area.validate(features.geometry)
        weights_hw = _weights(area, features.geometry, clip_side(features))
        yield unit(np.tensordot(valid_cells(features), weights_hw, axes=2))


def mean_under_masks(
    geometry: Geometry, map_Dss: FloatArray, logits_Rtt: NDArray[Any]
) -> NDArray[np.float32]:
    """Return the mean of a map under each mask, R×D: a cell counts by its share of the mask.

    Map and logits cover the padded model frame; a mask is where its logits are above zero.
    """
    rows, columns = geometry.grid(map_Dss.shape[-1])
    map_DN = map_Dss[:, :rows, :columns].astype(np.float32).reshape(len(map_Dss), -1)
    shares_RN = np.empty((len(logits_Rtt), map_DN.shape[1]), np.float32)
    for share_N, logits_tt in zip(shares_RN, logits_Rtt, strict=True):
        inside_tt = (logits_tt > 0).astype(np.float32)
        inside_ss = cv2.resize(inside_tt, map_Dss.shape[1:], interpolation=cv2.INTER_AREA)
        share_N[:] = inside_ss[:rows, :columns].ravel()
    shares_RN /= np.maximum(shares_RN.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return shares_RN @ map_DN.T


def mean_under_runs(geometry: Geometry, map_Dss: FloatArray, mask: Runs) -> NDArray[np.float32]:
    """Return the mean of a map under a mask of the picture's size, D: a cell counts by its pixels.

    The map covers the padded model frame.
    """
    weights_hw = _pixels_per_cell(mask, geometry, map_Dss.shape[-1]) / np.float32(mask.area)
    rows, columns = weights_hw.shape
    return np.tensordot(map_Dss[:, :rows, :columns].astype(np.float32), weights_hw, axes=2)


def combine(
    image_D: NDArray[np.float32], text_D: NDArray[np.float32], text_weight: float
) -> NDArray[np.float32]:
    """Return the vector, of length 1, nearest to pictures that resemble both an image and a text.

    Both vectors have length 1; the text counts ``text_weight`` times as much. Texts have smaller
    cosines with pictures than other pictures have, so that with 1 it may count too little.
    """
    return unit(image_D + text_weight * text_D)


def _weights(area: Area, geometry: Geometry, side: int) -> NDArray[np.float32]:
    """Return how much of an area lies in each valid cell of a side×side grid, float32 h×w."""
    if area.mask is not None:
        return _pixels_per_cell(area.mask, geometry, side)
    assert area.box is not None
    x_min, y_min, x_max, y_max = area.box
    rows, columns = geometry.grid(side)
    cell_height, cell_width = _cell(geometry, side)
    row_h = _overlap(y_min / cell_height, y_max / cell_height, rows)
    column_w = _overlap(x_min / cell_width, x_max / cell_width, columns)
    return np.outer(row_h, column_w).astype(np.float32)


def _cell(geometry: Geometry, side: int) -> tuple[float, float]:
    """Return height and width of a cell in pixels of the original picture."""
    cell = geometry.size / side
    height = cell * geometry.height / geometry.input_height
    return height, cell * geometry.width / geometry.input_width


def _overlap(low: float, high: float, cells: int) -> NDArray[np.float64]:
    """Return the length of each cell's part of an interval, relative to the whole interval."""
    edge_N = np.clip(np.arange(cells + 1), low, high)
    return np.diff(edge_N) / (high - low)


def _pixels_per_cell(mask: Runs, geometry: Geometry, side: int) -> NDArray[np.float32]:
    """Count the mask's pixels whose centre is in each cell, from its runs alone."""
    rows, columns = geometry.grid(side)
    cell_height, cell_width = _cell(geometry, side)
    y_N = _first_pixels(cell_height, rows, mask.height)
    x_N = _first_pixels(cell_width, columns, mask.width)
    offset_WN = np.arange(mask.width)[:, None] * mask.height + y_N
    column_Wh = np.diff(mask.pixels_before(offset_WN), axis=1)
    before_Nh = np.concatenate([np.zeros((1, rows), np.int64), column_Wh.cumsum(axis=0)])[x_N]
    return np.diff(before_Nh, axis=0).T.astype(np.float32)


def _first_pixels(cell: float, cells: int, pixels: int) -> NDArray[np.int64]:
    """Return the first pixel whose centre is in each cell, and the number of pixels at the end."""
    first_N = np.ceil(np.arange(cells + 1) * cell - 0.5).clip(0, pixels).astype(np.int64)
    first_N[-1] = pixels
    return first_N


@dataclass(frozen=True)
class Classify(Request[list[list[Score]]]):
    """Which of the labels fits a picture, or each of its ``areas``? ``top_k`` None or 0: all.

    Without ``templates``, the checkpoint's are used.
    """

    labels: Sequence[str]
    top_k: int | None = None
    areas: Iterable[Area] | None = None
    templates: Sequence[str] | None = None

    def outputs(self, config: SamClipConfig) -> tuple[Output, ...]:
        return ("CLIP_POOLED",) if self.areas is None else ("CLIP_DENSE",)

    def size(self, config: SamClipConfig) -> int:
        return config.size_of("classify" if self.areas is None else "semantic")

    @property
    def asked(self) -> list[Texts]:
        return [Texts(self.labels, self.templates)]

    def steps(
        self, features: ImageFeatures, text_XD: FloatArray, config: SamClipConfig, terms: Terms
    ) -> Steps[list[list[Score]]]:
        return (yield from gathered(self.scores(features, text_XD, config.logit_scale)))

    def scores(
        self, features: ImageFeatures, text_LD: FloatArray, logit_scale: float
    ) -> Iterator[list[Score]]:
        """Yield the scores of the labels, best first, for the picture or for each area.

        Rows of ``text_LD`` have length 1. Raises InvalidLabels and InvalidRequest.
        """
        if self.areas is None:
            vectors: Iterable[FloatArray] = [pooled(features)]
        else:
            vectors = embed_areas(features, self.areas)
        for vector_D in vectors:
            yield classify(vector_D, text_LD, self.labels, logit_scale, self.top_k)


class Namer:
    """Names masks by the most likely of some labels, L texts of width D."""

    def __init__(
        self,
        labels: Sequence[str],
        text_LD: FloatArray,
        logit_scale: float,
        min_score: float,
    ) -> None:
        """Leave masks without a name whose label has a smaller share than ``min_score``.

        ``text_LD`` has rows of length 1. Raises InvalidLabels.
        """
        check_labels(labels)
        self._labels = labels
        self._text_LD = text_LD.astype(np.float32)
        self._logit_scale = logit_scale
        self._min_score = min_score

    def name(self, mask: EverythingMask, features: ImageFeatures) -> EverythingMask:
        """Return the mask with its most likely label and that label's share among all.

        ``features`` are those of the picture or crop in which it was found.
        """
        dense_Dhw, logits_1ss = features.output("CLIP_DENSE"), mask.logits_hw[None]
        (mask_D,) = mean_under_masks(features.geometry, dense_Dhw, logits_1ss)
        return self.name_by(mask, mask_D)

    def name_by(self, mask: EverythingMask, mask_D: FloatArray) -> EverythingMask:
        """Return the mask with its label, as ``name``, from the mean of the CLIP map under it."""
        share_L = softmax(self._logit_scale * (self._text_LD @ unit(mask_D)))
        best = int(share_L.argmax())
        score = float(share_L[best])
        if score < self._min_score:
            return mask
        return replace(mask, label=self._labels[best], label_score=score)
