"""The objects of a picture as a collection stores them: a vector and an outline each.

The objects of one image are stored together as bytes: a header; R vectors of D float16, then the
picture's mean one; predicted IoU, stability, share of the picture, whether it touches the border,
and length of the mean vector, R×5 float16; where each outline ends as uint32; and the outlines.

An outline is the compressed levels of a mask, as in ``samclip_core.regions``. Where tiles were
searched, each part has such bytes of its own: a header with the number of objects and of parts, and
the size of the picture; then of each part its corner, the number of its bytes, and these.
"""

import math
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.objects import MOST, Numbers, choose
from samclip_core.answers.tiles import MAX_TILES, PlacedMask, place
from samclip_core.answers.zero_shot import unit
from samclip_core.geometry import Crop, FloatArray, Geometry
from samclip_core.io.image import MAX_SIDE
from samclip_core.regions import Regions, to_logits
from samclip_core.types import EverythingMask

MOST_BYTES = 2**20
"""Bytes of one picture's objects. Photographs have 150 KB, and a line of a backup has room."""
_HEADER = struct.Struct("<B?HHIII")  # version, Geometry's squash, objects, s, height, width, size
_VERSION, _TILED = 1, 2
_PLACE = struct.Struct("<III")  # x, y, bytes
NO_LOGITS = np.empty((0, 0), np.float16)  # of masks that are compared by their runs alone
_SCORES = 5
_MOST_SIDE = 1024
_MOST_OVERHEAD = 1024
"""Bytes by which compressed levels exceed others: zlib adds some 330 to a million."""


class Object(NamedTuple):
    """One object of an image."""

    geometry: Geometry
    side: int
    outline: bytes
    predicted_iou: float
    stability: float
    crop: Crop | None = None

    def found(self) -> EverythingMask:
        """Return its mask as it was found. Raises ValueError if it is damaged."""
        levels_hw = self.levels()
        rows, columns = levels_hw.shape
        levels_ss = np.zeros((self.side, self.side), np.int8)
        levels_ss[:rows, :columns] = levels_hw
        logits_ss = to_logits(levels_ss)
        numbers = self.predicted_iou, self.stability
        return EverythingMask(self.geometry, logits_ss, *numbers, crop=self.crop)

    def levels(self) -> NDArray[np.int8]:
        """Return the levels of the stored cells, h×w. Raises ValueError if they are damaged."""
        rows, columns = _stored_cells(self.geometry, self.side)
        reader, cells = zlib.decompressobj(), rows * columns
        try:
            levels = reader.decompress(self.outline, cells + 1)  # not what a bomb would become
        except zlib.error as error:
            raise ValueError(f"the outline of an object is damaged: {error}") from error
        if len(levels) != cells or not reader.eof or reader.unused_data:
            raise ValueError(f"the outline of an object is damaged: expected {cells:,} levels")
        return np.frombuffer(levels, np.int8).reshape(rows, columns)


class Objects:
    """The objects of one image, as ``pack`` or ``merge`` made them."""

    def __init__(self, packed: bytes, dimension: int):
        """Read the numbers of all objects. Raises ValueError for other bytes."""
        version, _, count, parts, height, width, _ = _header(packed)
        self._size, self._picture = len(packed), (height, width)
        if version != _TILED:
            self.parts = [PartObjects(packed, dimension)]
            return
        if not 0 < parts <= 1 + MAX_TILES**2:
            raise ValueError(f"objects in {parts:,} parts of a picture")
        self.parts, start = [], _HEADER.size
        for _ in range(parts):
            if len(packed) < start + _PLACE.size:
                raise ValueError("the objects of a part are missing")
            x, y, size = _PLACE.unpack_from(packed, start)
            start += _PLACE.size
            part = PartObjects(packed[start : start + size], dimension, (x, y, height, width))
            self.parts.append(part)
            start += size
        if (start, len(self)) != (len(packed), count):
            raise ValueError("the objects have more or fewer bytes than they state")

    def __len__(self) -> int:
        """Return the number of objects."""
        return sum(map(len, self.parts))

    def __getitem__(self, index: int) -> Object:
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)

    @cached_property
    def vector_RD(self) -> NDArray[np.float16]:
        """The vectors of all objects, of length 1."""
        return np.concatenate([part.vector_RD for part in self.parts])

    def check(self, most_pixels: int, frame: int = 0, side: int = 0) -> None:
        """Raise ValueError unless every object can be found and drawn: for bytes from outside.

        ``frame`` is the side of the frame in which the model sees pictures, ``side`` that of its
        logits, in cells; 0: any.
        """
        if self._size > MOST_BYTES:
            raise ValueError(
                f"the objects have {self._size:,} bytes, expected at most {MOST_BYTES:,}"
            )
        if (pixels := math.prod(self._picture)) > most_pixels:
            raise ValueError(f"the objects are of a picture of {pixels:,} pixels")
        if (longest := max(self._picture)) > MAX_SIDE:
            raise ValueError(
                f"the objects are of a picture with a side of {longest:,} pixels, expected at most "
                f"{MAX_SIDE:,}"
            )
        for part in self.parts:
            part.check(frame, side)


class PartObjects:
    """The objects of a picture, or of one of its tiles."""

    def __init__(
        self, packed: bytes, dimension: int, place: tuple[int, int, int, int] | None = None
    ):
        """Read the vectors, ``vector_RD``; ``place``: the corner, and the size of the picture.

        Raises ValueError for other bytes.
        """
        version, squash, count, self._side, height, width, size = _header(packed)
        if version != _VERSION:
            raise ValueError(f"the objects have layout {version}, expected {_VERSION}")
        self._geometry, self._crop = Geometry(height, width, size, squash), None
        if place and place[2:] != (height, width):
            x, y, picture_height, picture_width = place
            if x + width > picture_width or y + height > picture_height:
                raise ValueError("the objects are of a tile outside of its picture")
            self._crop = Crop(x, y, height, width, picture_height, picture_width)
        scores_at = _HEADER.size + 2 * (count + 1) * dimension
        ends_at = scores_at + 2 * _SCORES * count
        self._outlines_at = ends_at + 4 * count
        self._packed = packed
        vectors = np.frombuffer(packed, "<f2", (count + 1) * dimension, _HEADER.size)
        self.vector_RD = vectors.reshape(count + 1, dimension)[:-1]
        self._mean_D = vectors[count * dimension :]
        scores = np.frombuffer(packed, "<f2", _SCORES * count, scores_at)
        self._score_RS = scores.reshape(count, _SCORES)
        self._end_R = np.frombuffer(packed, "<u4", count, ends_at)

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self.vector_RD)

    def __getitem__(self, index: int) -> Object:
        start, end = self._outlines_at, self._outlines_at + int(self._end_R[index])
        if index:
            start += int(self._end_R[index - 1])
        outline = self._packed[start:end]
        predicted_iou, stability = map(float, self._score_RS[index, :2])
        return Object(self._geometry, self._side, outline, predicted_iou, stability, self._crop)

    @property
    def numbers(self) -> Numbers:
        """What the objects are compared by."""
        iou_R, stability_R, area_R, border_R, length_R = self._score_RS.astype(np.float32).T
        clip_RD = self.vector_RD * length_R[:, None]
        return Numbers(iou_R, stability_R, area_R, border_R > 0, clip_RD, self._mean_D)

    def check(self, frame: int, side: int) -> None:
        """Raise ValueError as ``Objects.check`` does."""
        self._check_sizes(frame, side)
        if not 0 < len(self) <= MOST:
            raise ValueError(f"{len(self):,} objects in one picture, expected 1 to {MOST}")
        self._check_numbers()
        self._check_outlines()

    def _check_sizes(self, frame: int, side: int) -> None:
        if not 0 < self._side <= _MOST_SIDE or self._geometry.size > 4 * _MOST_SIDE:
            raise ValueError("the objects have outlines of an impossible size")
        if frame not in (0, self._geometry.size):
            raise ValueError(
                f"the objects were found in a frame of {self._geometry.size} pixels, expected "
                f"{frame}"
            )
        if side not in (0, self._side):
            raise ValueError(f"the objects have outlines of side {self._side}, expected {side}")

    def _check_numbers(self) -> None:
        if not (np.isfinite(self.vector_RD).all() and np.isfinite(self._mean_D).all()):
            raise ValueError("the objects have vectors with numbers that are not finite")
        lengths_R = np.linalg.norm(self.vector_RD.astype(np.float32), axis=1)
        if not (np.abs(lengths_R - 1) < 0.05).all():
            raise ValueError("expected objects with vectors of length 1")
        predicted_iou_R, others_RS = self._score_RS[:, 0], self._score_RS[:, 1:]
        if not np.isfinite(predicted_iou_R).all():  # SAM's estimate may be more than 1
            raise ValueError("the objects have a predicted IoU that is not finite")
        if not ((others_RS >= 0) & (others_RS <= 1.01)).all():
            raise ValueError("expected scores from 0 to 1 for the objects")
        if not np.linalg.norm(self._mean_D.astype(np.float32)) <= 1.01:
            raise ValueError("expected a mean vector of the objects' picture")

    def _check_outlines(self) -> None:
        """Raise ValueError unless each outline is whole, and nothing else is stored."""
        rows, columns = _stored_cells(self._geometry, self._side)
        size_R = np.diff(self._end_R, prepend=np.uint32(0)).astype(np.int64)
        if size_R.max() > rows * columns + _MOST_OVERHEAD:
            raise ValueError("the objects have outlines longer than they can be")
        if size_R.sum() != len(self._packed) - self._outlines_at:
            raise ValueError("the objects have more or fewer bytes than they state")
        for index in range(len(size_R)):
            self[index].levels()

    def of(self, chosen: Sequence[int]) -> bytes:
        """Return some of the objects, packed."""
        return _packed(
            self._geometry,
            self._side,
            self.vector_RD[chosen],
            self._mean_D,
            self._score_RS[chosen],
            [self[index].outline for index in chosen],
        )


def pack(regions: Regions, geometry: Geometry, crop: Crop | None = None) -> bytes:
    """Return the best regions of a picture, or of a tile, as objects; without any, no bytes.

    ``geometry`` is that of the picture in which they were found. They have at most ``MOST_BYTES``:
    others are left out, the least certain first.
    """
    stored = geometry.of(crop) if crop else geometry
    chosen, side = choose(regions, stored), regions.levels_Rss.shape[-1]
    rows, columns = _stored_cells(stored, side)
    outlines = [zlib.compress(regions.levels_Rss[i, :rows, :columns].tobytes()) for i in chosen]
    each, room = _sizes(regions.clip_RD.shape[1])
    fit = int(np.searchsorted(np.cumsum([each + len(one) for one in outlines]), room, "right"))
    chosen, outlines = chosen[:fit], outlines[:fit]
    if not outlines:
        return b""
    found = Numbers.of(regions, chosen, geometry)
    length_R = np.linalg.norm(found.clip_RD.astype(np.float32), axis=1)
    scores_RS = np.stack([*found[:4], length_R], axis=1)
    return _packed(stored, side, unit(found.clip_RD), found.clip_mean_D, scores_RS, outlines)


def placed(packed: bytes, dimension: int, crop: Crop | None) -> Iterator[PlacedMask]:
    """Yield the objects of a part in the whole picture, without those that its edge cuts.

    ``region`` of each mask is the index in the part.
    """
    part = PartObjects(packed, dimension) if packed else ()
    for index in range(len(part)):
        for one in place([part[index].found()], crop):
            yield PlacedMask(replace(one.mask, logits_hw=NO_LOGITS, region=index), one.runs)


def merge(parts: Mapping[Crop | None, bytes], masks: Sequence[PlacedMask], dimension: int) -> bytes:
    """Return the objects of a picture (None) and its tiles.

    ``masks`` are those of the parts (``placed``), one of each thing. They have at most
    ``MOST_BYTES`` together: others are left out, the least certain first.
    """
    found = {crop: PartObjects(packed, dimension) for crop, packed in parts.items() if packed}
    each, room = _sizes(dimension)
    room -= len(found) * (_PLACE.size + MOST_BYTES - room)
    chosen = defaultdict[Crop | None, list[int]](list)
    for one in sorted(masks, key=lambda one: -one.mask.predicted_iou * one.mask.stability):
        assert one.mask.region is not None
        room -= each + len(found[one.mask.crop][one.mask.region].outline)
        if room < 0:
            break
        chosen[one.mask.crop].append(one.mask.region)
    if not chosen:
        return b""
    height, width = next((crop.picture_height, crop.picture_width) for crop in parts if crop)
    count = sum(map(len, chosen.values()))
    made = [_HEADER.pack(_TILED, False, count, len(chosen), height, width, 0)]
    for crop, some in chosen.items():
        packed = found[crop].of(some)
        made += _PLACE.pack(*((crop.x, crop.y) if crop else (0, 0)), len(packed)), packed
    return b"".join(made)


def _sizes(dimension: int) -> tuple[int, int]:
    """Return the bytes of an object without its outline, and those of all objects of a picture."""
    return 2 * dimension + 2 * _SCORES + 4, MOST_BYTES - _HEADER.size - 2 * dimension


def _packed(
    geometry: Geometry,
    side: int,
    vector_RD: FloatArray,
    mean_D: FloatArray,
    score_RS: FloatArray,
    outlines: Sequence[bytes],
) -> bytes:
    sides = side, geometry.height, geometry.width, geometry.size
    return b"".join(
        (
            _HEADER.pack(_VERSION, geometry.squash, len(outlines), *sides),
            vector_RD.astype("<f2").tobytes(),
            mean_D.astype("<f2").tobytes(),
            score_RS.astype("<f2").tobytes(),
            np.cumsum([*map(len, outlines)]).astype("<u4").tobytes(),
            *outlines,
        )
    )


def count(packed: bytes) -> int:
    """Return the number of packed objects. Raises ValueError for bytes without a header."""
    return int(_header(packed)[2]) if packed else 0


def _header(packed: bytes) -> tuple[Any, ...]:
    if len(packed) < _HEADER.size:
        raise ValueError("the objects have no header")
    return _HEADER.unpack_from(packed)


def _stored_cells(geometry: Geometry, side: int) -> tuple[int, int]:
    """Return the rows and columns of the cells that a mask depends on."""
    rows, columns = (min(cells + 1, side) for cells in geometry.grid(side))
    return rows, columns
