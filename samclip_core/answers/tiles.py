"""A large picture in tiles: each is encoded as a picture of its own beside the whole.

A thing that the edge of a tile cuts is left to the neighbour or the whole. Of masks of the same
thing in several parts, the best is kept. C classes, h w cells.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers import points
from samclip_core.answers.dense import clip_side, interpolation
from samclip_core.answers.points import is_cut
from samclip_core.answers.steps import Encode, Steps, gathered
from samclip_core.answers.things import MAX_COVER, MAX_IOU, is_double, is_size
from samclip_core.errors import InvalidRequest
from samclip_core.geometry import Crop, FloatArray, Geometry
from samclip_core.io.masks import Runs, runs_of_logits
from samclip_core.types import EverythingMask, ImageFeatures

MAX_TILES = 16
"""Most tiles along a side; they are up to 256."""
AUTO = -1
"""As many tiles as are needed to shrink none to less than half its sides."""
OVERLAP = 0.25
"""Share of a tile's side that its neighbour has too."""
LEAST_SIDE = 16
"""Pixels of a tile's side, below which it shows nothing that the whole does not."""

NO_PLACE = (
    "tiles search the whole picture for texts and examples: leave points, boxes and masks out, or "
    "leave out tiles"
)
NO_LOGITS = (
    "the logits of a tile are no mask_input for the image: choose another encoding, or leave out "
    "tiles"
)

Part = tuple[Crop | None, ImageFeatures]
"""A tile with its features, or the whole picture (None)."""


def is_tiled(tiles: int) -> bool:
    """Return whether a request asks for more than the whole picture."""
    return bool(tiles) and tiles != 1


def check_tiles(tiles: int, most: int) -> None:
    """Raise InvalidRequest unless the number of tiles is AUTO or 0 to ``most``."""
    if not isinstance(tiles, int) or not (tiles == AUTO or 0 <= tiles <= most):
        raise InvalidRequest(
            f"tiles is {tiles!r}, expected 0 (the whole alone) to {most}, or {AUTO}: as many as "
            "the picture needs"
        )


@dataclass(frozen=True)
class Tiling:
    """How many tiles are along the longer side (AUTO: as needed), and how many are at most."""

    tiles: int = 0
    most: int = MAX_TILES

    @property
    def is_wanted(self) -> bool:
        """Whether a request asks for more than the whole picture."""
        return is_tiled(self.tiles)

    def crops(self, whole: Geometry) -> list[Crop]:
        """Return the tiles of a picture. Raises InvalidRequest for tiles of a few pixels."""
        return tiles_of(whole.height, whole.width, self.tiles, whole.size, self.most)


NO_TILES = Tiling()


def encodings(crops: Sequence[Crop], encoding: Encode) -> Iterator[tuple[Crop, Encode]]:
    """Yield each tile with what to ask of the encoder: what is asked of the whole."""
    for number, crop in enumerate(crops):
        yield crop, replace(encoding, texts=(), crops=crops[number:])


def tiles_of(height: int, width: int, tiles: int, size: int, most: int) -> list[Crop]:
    """Return the tiles of a picture, row by row, ``tiles`` along its longer side.

    ``size`` is the side of the model frame in pixels, ``most`` the largest number of tiles that
    AUTO takes. Raises InvalidRequest for tiles of a few pixels.
    """
    longer = max(height, width)
    count = tiles
    if tiles == AUTO:
        count = next((n for n in range(1, most) if _side(longer, n) <= 2 * size), most)
    if count < 2:
        return []
    side = _side(longer, count)
    if side < LEAST_SIDE:
        raise InvalidRequest(
            f"tiles is {count}, and {width}×{height} pixels make tiles of {side}: expected at "
            f"least {LEAST_SIDE}; ask for fewer tiles"
        )
    rows, columns = (_starts(length, side) for length in (height, width))
    tile_height, tile_width = min(side, height), min(side, width)
    return [Crop(x, y, tile_height, tile_width, height, width) for y, x in product(rows, columns)]


def _side(longer: int, count: int) -> int:
    """Return the side of the tiles of which ``count`` cover the longer side."""
    return math.ceil(longer / (count - (count - 1) * OVERLAP))


def _starts(length: int, side: int) -> list[int]:
    """Return where the tiles of a side begin, evenly from one end to the other."""
    rest = max(0, length - side)
    count = 1 + math.ceil(rest / (side * (1 - OVERLAP)) - 1e-9)
    return [round(rest * number / max(1, count - 1)) for number in range(count)]


@dataclass(frozen=True, eq=False)
class PlacedMask:
    """A mask in the whole picture."""

    mask: EverythingMask
    runs: Runs

    def common(self, other: "PlacedMask") -> int:
        """Return the number of pixels that both have."""
        before = other.runs.pixels_before
        return int((before(self.runs.end_K) - before(self.runs.start_K)).sum())


def place(masks: Iterable[EverythingMask], crop: Crop | None) -> Iterator[PlacedMask]:
    """Yield the masks of a part in the whole picture, without those that its edge cuts."""
    for mask in masks:
        if crop:
            mask = replace(mask, geometry=mask.geometry.of(crop), crop=crop, region=None)
        placed = PlacedMask(mask, runs_of_logits(mask.geometry, mask.logits_hw, crop))
        if placed.runs.area and not (crop and is_cut(placed.runs.box, crop)):
            yield placed


def of_label(found: Iterable[PlacedMask]) -> list[PlacedMask]:
    """Return the masks of one text or example, the best score first, as in a single picture."""
    in_order = sorted(found, key=lambda one: -one.mask.label_score)
    kept, things = list[PlacedMask](), dict[int, int]()  # the thing of each one that is its best
    for one, common in _different(in_order, MAX_IOU, MAX_COVER):
        areas = ((n, kept[n].runs.area, pixels) for n, pixels in common.items() if n in things)
        same = (things[n] for n, best, pixels in areas if is_size(one.runs.area, best, pixels))
        number = next(same, len(things))
        if number == len(things):
            things[len(kept)] = number
        kept.append(replace(one, mask=replace(one.mask, thing=number)))
    return kept


class InParts:
    """The masks of each prompt, by its index, in a picture and those of its tiles so far."""

    def __init__(self) -> None:
        self._kept = dict[int, list[PlacedMask]]()

    def add(self, index: int, masks: Sequence[EverythingMask], crop: Crop | None) -> Steps[None]:
        """Add those of a prompt in a part, and keep the different ones."""
        placed = yield from gathered(place(masks, crop))
        self._kept[index] = of_label([*self._kept.get(index, ()), *placed])

    def __len__(self) -> int:
        return sum(map(len, self._kept.values()))

    @property
    def found(self) -> dict[int, list[EverythingMask]]:
        """The masks in the whole picture."""
        return {index: [one.mask for one in kept] for index, kept in self._kept.items()}


def of_everything(found: Iterable[PlacedMask]) -> list[PlacedMask]:
    """Return a mask of each thing, the largest first.

    As in SAM's crops, that of a tile is better than the whole's.
    """
    in_order = sorted(found, key=lambda one: (one.mask.crop is None, -one.mask.predicted_iou))
    different = (one for one, _ in _different(in_order, points.MAX_IOU, math.inf))
    return sorted(different, key=lambda one: -one.runs.area)


def _different(
    found: Sequence[PlacedMask], max_iou: float, max_cover: float
) -> Iterator[tuple[PlacedMask, dict[int, int]]]:
    """Yield masks, but none that overlaps an earlier one too much, or covers too much of it.

    With each, the pixels that it shares with earlier ones, by their number.
    """
    kept: list[PlacedMask] = []
    box_K4 = np.empty((len(found), 4), np.int64)
    for one in found:
        low_K2, high_K2 = np.split(box_K4[: len(kept)], 2, axis=1)
        x_min, y_min, x_max, y_max = one.runs.box
        near_K = ((low_K2 < (x_max, y_max)) & (high_K2 > (x_min, y_min))).all(axis=1)
        common, area = dict[int, int](), one.runs.area
        for number in map(int, np.flatnonzero(near_K)):
            better = kept[number]
            common[number] = one.common(better)
            if is_double(area, better.runs.area, common[number], max_iou, max_cover):
                break
        else:
            box_K4[len(kept)] = one.runs.box
            kept.append(one)
            yield one, common


MAX_VALUES = 2**26
"""Values of the maps of a mosaic: 256 MB."""


def check_mosaic(crops: Sequence[Crop], classes: int, whole: ImageFeatures) -> None:
    """Raise InvalidRequest if the maps of so many classes take too much memory."""
    grid = _grid(crops, whole)
    if (values := classes * grid.input_height * grid.input_width) > MAX_VALUES:
        raise InvalidRequest(
            f"{classes} labels and background words in so many tiles make maps of {values:,} "
            f"values, at most {MAX_VALUES:,}: ask for fewer labels or tiles"
        )


def _grid(crops: Sequence[Crop], whole: ImageFeatures) -> Geometry:
    """Return the picture in a frame whose pixels are as large as the cells of a tile."""
    crop = crops[0]
    longer = max(crop.picture_height, crop.picture_width)
    cells = math.ceil(longer / max(crop.height, crop.width) * clip_side(whole))
    return Geometry(crop.picture_height, crop.picture_width, cells)


def mosaic(
    parts: Sequence[Part], maps_of: Callable[[ImageFeatures], FloatArray]
) -> Steps[tuple[Geometry, NDArray[np.float32]]]:
    """Blend the maps of the parts: near the edge of a tile, its neighbour counts for more.

    ``maps_of`` returns the maps of a part, C×h×w over the cells that hold picture; those of one
    part are in memory at a time. Returns the maps of the whole, in a frame whose pixels are cells.
    """
    geometry = _grid([crop for crop, _ in parts if crop], parts[0][1])
    height, width = geometry.input_height, geometry.input_width
    sum_Chw: NDArray[np.float32] | None = None
    weight_hw = np.zeros((height, width), np.float32)
    for crop, features in parts:
        part = crop or Crop(0, 0, *(2 * (geometry.height, geometry.width)))
        rows, share_H = _inside(height, part.y, part.height, part.picture_height)
        columns, share_W = _inside(width, part.x, part.width, part.picture_width)
        rows_Hh, columns_wW = interpolation(
            features.geometry, clip_side(features), share_H, share_W
        )
        own_hw = _weights(part, share_H, share_W) if crop else np.float32(WHOLE)
        maps_Chw = maps_of(features)
        if sum_Chw is None:
            sum_Chw = np.zeros((len(maps_Chw), height, width), np.float32)
        for sum_hw, map_hw in zip(sum_Chw, maps_Chw, strict=True):
            sum_hw[rows, columns] += own_hw * (rows_Hh @ map_hw @ columns_wW)
        weight_hw[rows, columns] += own_hw
        yield None
    assert sum_Chw is not None
    sum_Chw /= weight_hw
    return geometry, sum_Chw


def _inside(cells: int, start: int, length: int, whole: int) -> tuple[slice, NDArray[np.float64]]:
    """Return which cells of a side have their centre in a part of it, and where: 0 to 1."""
    share = ((np.arange(cells) + 0.5) * whole / cells - start) / length
    inside = slice(*np.searchsorted(share, (0, 1)).tolist())
    return inside, share[inside]


WHOLE = 0.25
"""Weight of the whole picture's map beside that of a tile, which is 1 in its middle."""


def _weights(crop: Crop, share_H: FloatArray, share_W: FloatArray) -> NDArray[np.float32]:
    """Return the weights of a tile's cells: 1 in the middle, falling to edges in the picture."""

    def along(share: FloatArray, start: int, length: int, whole: int) -> FloatArray:
        before = share if start else np.ones_like(share)
        after = 1 - share if start + length < whole else np.ones_like(share)
        return np.minimum(1, 2 * np.minimum(before, after))

    near_H = along(share_H, crop.y, crop.height, crop.picture_height)
    near_W = along(share_W, crop.x, crop.width, crop.picture_width)
    return np.minimum(near_H[:, None], near_W).astype(np.float32)
