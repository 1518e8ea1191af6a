"""The objects of indexed images: of the best regions, a vector and an outline each.

The objects of one image are stored together as bytes: a header; R vectors of D float16, then the
picture's mean one; predicted IoU, stability, share of the picture, whether it touches the border,
and length of the mean vector, R×5 float16; where each outline ends as uint32; and the outlines.

An outline is the compressed levels of a mask, as in ``samclip_core.regions``.
"""

import heapq
import logging
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from samclip.v1 import samclip_pb2 as pb
from usearch.index import MetricKind, search

from samclip_core.answers.objects import MOST, Numbers, choose
from samclip_core.answers.steps import Steps
from samclip_core.answers.zero_shot import unit
from samclip_core.geometry import Geometry
from samclip_core.io.image import MAX_SIDE
from samclip_core.regions import Regions, to_logits
from samclip_core.types import EverythingMask
from services.request import wire
from services.retrieval.query import Query

logger = logging.getLogger(__name__)

MOST_BYTES = 2**20
"""Bytes of one picture's objects. Photographs have 150 KB, and a line of a backup has room."""
PAGE = 16
"""Images whose objects are compared at once: at most 16 MiB, and of photographs some 2 MB."""

SPARE = 1000
"""Images that are compared beyond twice the hits before the best of them are chosen."""

_HEADER = struct.Struct("<BxHHIII")  # version, objects, s, and the height, width, size of Geometry
_VERSION = 1
_SCORES = 5
_MOST_SIDE = 1024
_MOST_OVERHEAD = 1024
"""Bytes by which compressed levels exceed others: zlib adds some 330 to a million."""

Page = Sequence[tuple[str, bytes]]
"""Ids of images and their packed objects."""
Best = tuple[str, float]
"""The id of an image, and the cosine of its object that is nearest to a query."""


class Object(NamedTuple):
    """One object of an image."""

    geometry: Geometry
    side: int
    outline: bytes
    predicted_iou: float
    stability: float

    def mask(self) -> pb.Mask:
        """Return its mask over the original picture, as RLE. Raises ValueError if it is damaged."""
        levels_hw = self.levels()
        rows, columns = levels_hw.shape
        levels_ss = np.zeros((self.side, self.side), np.int8)
        levels_ss[:rows, :columns] = levels_hw
        logits_ss = to_logits(levels_ss)
        found = EverythingMask(self.geometry, logits_ss, self.predicted_iou, self.stability)
        return wire.to_everything_mask(found, pb.RLE)

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
    """The objects of one image, as ``pack`` made them."""

    def __init__(self, packed: bytes, dimension: int):
        """Read the vectors, ``vector_RD``. Raises ValueError for other bytes."""
        if len(packed) < _HEADER.size:
            raise ValueError("the objects have no header")
        version, count, self._side, height, width, size = _HEADER.unpack_from(packed)
        if version != _VERSION:
            raise ValueError(f"the objects have layout {version}, expected {_VERSION}")
        self._geometry = Geometry(height, width, size)
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

    def __getitem__(self, index: int) -> Object:
        start, end = self._outlines_at, self._outlines_at + int(self._end_R[index])
        if index:
            start += int(self._end_R[index - 1])
        outline = self._packed[start:end]
        predicted_iou, stability = map(float, self._score_RS[index, :2])
        return Object(self._geometry, self._side, outline, predicted_iou, stability)

    @property
    def numbers(self) -> Numbers:
        """What the objects are compared by."""
        iou_R, stability_R, area_R, border_R, length_R = self._score_RS.astype(np.float32).T
        clip_RD = self.vector_RD * length_R[:, None]
        return Numbers(iou_R, stability_R, area_R, border_R > 0, clip_RD, self._mean_D)

    def check(self, most_pixels: int, frame: int = 0, side: int = 0) -> None:
        """Raise ValueError unless every object can be found and drawn: for bytes from outside.

        ``frame`` is the side of the frame in which the model sees pictures, ``side`` that of its
        logits, in cells; 0: any.
        """
        if len(self._packed) > MOST_BYTES:
            raise ValueError(
                f"the objects have {len(self._packed):,} bytes, expected at most {MOST_BYTES:,}"
            )
        self._check_sizes(most_pixels, frame, side)
        if not 0 < len(self.vector_RD) <= MOST:
            raise ValueError(
                f"{len(self.vector_RD):,} objects in one picture, expected 1 to {MOST}"
            )
        self._check_numbers()
        self._check_outlines()

    def _check_sizes(self, most_pixels: int, frame: int, side: int) -> None:
        pixels = self._geometry.height * self._geometry.width
        if not 0 < self._side <= _MOST_SIDE or self._geometry.size > 4 * _MOST_SIDE:
            raise ValueError("the objects have outlines of an impossible size")
        if frame not in (0, self._geometry.size):
            raise ValueError(
                f"the objects were found in a frame of {self._geometry.size} pixels, expected "
                f"{frame}"
            )
        if side not in (0, self._side):
            raise ValueError(f"the objects have outlines of side {self._side}, expected {side}")
        if pixels > most_pixels:
            raise ValueError(f"the objects are of a picture of {pixels:,} pixels")
        if (longest := max(self._geometry.height, self._geometry.width)) > MAX_SIDE:
            raise ValueError(
                f"the objects are of a picture with a side of {longest:,} pixels, expected at most "
                f"{MAX_SIDE:,}"
            )

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


def pack(regions: Regions, geometry: Geometry) -> bytes:
    """Return the best regions of a picture as objects; without any, no bytes.

    They have at most ``MOST_BYTES``: others are left out, the least certain first.
    """
    chosen = choose(regions, geometry)
    rows, columns = _stored_cells(geometry, regions.levels_Rss.shape[-1])
    outlines = [zlib.compress(regions.levels_Rss[i, :rows, :columns].tobytes()) for i in chosen]
    each = 2 * regions.clip_RD.shape[1] + 2 * _SCORES + 4
    room = MOST_BYTES - _HEADER.size - 2 * regions.clip_RD.shape[1]
    fit = int(np.searchsorted(np.cumsum([each + len(one) for one in outlines]), room, "right"))
    chosen, outlines = chosen[:fit], outlines[:fit]
    if not outlines:
        return b""
    found = Numbers.of(regions, chosen, geometry)
    length_R = np.linalg.norm(found.clip_RD.astype(np.float32), axis=1)
    scores_RS = np.stack([*found[:4], length_R], axis=1)
    sides = regions.levels_Rss.shape[-1], geometry.height, geometry.width, geometry.size
    return b"".join(
        (
            _HEADER.pack(_VERSION, len(chosen), *sides),
            unit(found.clip_RD).astype("<f2").tobytes(),
            found.clip_mean_D.astype("<f2").tobytes(),
            scores_RS.astype("<f2").tobytes(),
            np.cumsum([*map(len, outlines)]).astype("<u4").tobytes(),
            *outlines,
        )
    )


def count(packed: bytes) -> int:
    """Return the number of packed objects."""
    return int(_HEADER.unpack_from(packed)[1]) if packed else 0


def nearest(pages: Iterable[Page], query: Query, dimension: int) -> Steps[list[Best]]:
    """Return the hits of a query: images by their nearest object, each once, best first."""
    wanted, hits = query.offset + query.top_k, list[Best]()

    def best() -> list[Best]:
        return heapq.nsmallest(wanted, hits, key=lambda hit: (-hit[1], hit[0]))

    for number, page in enumerate(pages):
        if number:
            yield None
        for id, score in _compared(page, unit(query.vector_D), dimension):
            if id != query.exclude and query.accepts(score):
                hits.append((id, score))
        if len(hits) > 2 * wanted + SPARE:
            hits = best()
    return best()[query.offset :]


def meant(packed: bytes, query: Query, dimension: int) -> Object:
    """Return the object of an image that a query means."""
    found = Objects(packed, dimension)
    if query.sought is None:
        return found[int((found.vector_RD @ query.vector_D).argmax())]
    return found[query.sought.best(found.numbers)]


def drawn(found: Iterable[tuple[pb.Hit, Object]]) -> Iterator[pb.Hit]:
    """Yield each hit with the box and the mask of its object, unless these are damaged."""
    for hit, best in found:
        try:
            hit.mask.CopyFrom(best.mask())
        except ValueError as error:
            logger.warning("item %r is left out until it is indexed again: %s", hit.id, error)
            continue
        hit.box.CopyFrom(hit.mask.box)
        yield hit


def _read(id: str, packed: bytes, dimension: int) -> Objects | None:
    """Return the objects of an image, or None if they are damaged: the others can be searched."""
    try:
        return Objects(packed, dimension)
    except ValueError as error:
        logger.warning("item %r is left out until it is indexed again: %s", id, error)
        return None


def _compared(page: Page, query_D: NDArray[np.float32], dimension: int) -> Iterator[Best]:
    """Yield the best object of each image, from one product with all vectors of the page."""
    held = [(id, found) for id, packed in page if (found := _read(id, packed, dimension))]
    if not held:
        return
    vectors_ND = np.concatenate([found.vector_RD for _, found in held])
    # Numpy would take ten times as long, because it converts float16 first.
    query = query_D.astype(np.float16)
    ranked = search(vectors_ND, query, len(vectors_ND), MetricKind.IP, exact=True, threads=1)
    end_N = np.cumsum([len(found.vector_RD) for _, found in held])
    owner_N = np.searchsorted(end_N, ranked.keys, side="right")
    for number, first in zip(*np.unique(owner_N, return_index=True), strict=True):
        yield held[number][0], float(1 - ranked.distances[first])


def _stored_cells(geometry: Geometry, side: int) -> tuple[int, int]:
    """Return the rows and columns of the cells that a mask depends on."""
    rows, columns = (min(cells + 1, side) for cells in geometry.grid(side))
    return rows, columns
