"""Codecs of masks: numpy arrays from and to their encodings, with numpy and Pillow only."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from samclip.values.runs import decode_pixels, decode_runs


@dataclass(frozen=True, eq=False)
class Encoded:
    """A mask of ``height``×``width`` pixels as the service encoded it.

    data: counts of an RLE or a PNG file as bytes; polygons as float32 rings.
    """

    kind: Literal["rle", "png", "polygons"]
    data: Any
    height: int
    width: int

    def decode(self) -> np.ndarray:
        """Return bool H×W, in any order in memory. Raises ValueError if the data are damaged."""
        match self.kind:
            case "rle":
                return decode_rle(self.data, self.height, self.width)
            case "png":
                return decode_levels(self.data) > 127
            case "polygons":
                return decode_polygons(self.data, self.height, self.width)


def decode_rle(counts: bytes, height: int, width: int) -> np.ndarray:
    """Decode COCO's compressed run lengths to bool H×W, in order of columns as they are.

    Raises ValueError if they do not fill it.
    """
    return decode_pixels(decode_runs(counts, height, width)).T


def encode_rle(mask_HW: np.ndarray) -> bytes:
    """Encode bool H×W as COCO's compressed run lengths; ``decode_runs`` describes them."""
    pixels = np.concatenate([[False], mask_HW.T.reshape(-1)])
    changes = np.flatnonzero(pixels[1:] != pixels[:-1])
    runs = np.diff(changes, prepend=0, append=len(pixels) - 1)
    numbers = runs.copy()
    numbers[3:] -= runs[1:-2]
    counts = bytearray()
    for number in numbers.tolist():
        more = True
        while more:
            digit, number = number & 0x1F, number >> 5
            more = number != (-1 if digit & 0x10 else 0)
            counts.append(digit + 0x20 * more + 48)
    return bytes(counts)


def decode_levels(png: bytes) -> np.ndarray:
    """Decode a one-channel PNG of 8 or 16 bits to the unsigned numbers H×W in it."""
    return np.asarray(Image.open(io.BytesIO(png)))


def decode_polygons(rings: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Rasterise closed float32 rings (x0, y0, x1, y1, …) to bool H×W: even-odd at pixel centres.

    Raises ValueError if a ring has an odd number of coordinates or one that is not finite.
    """
    if not all(len(ring) % 2 == 0 and np.isfinite(ring).all() for ring in rings):
        raise ValueError(
            "a mask's polygon has an odd number of coordinates or one that is not finite"
        )
    flips_HW = np.zeros((height, width + 1), bool)  # where a row crosses an edge
    for ring in rings:
        start_K2 = ring.reshape(-1, 2).astype(np.float64)
        for (x0, y0), (x1, y1) in zip(start_K2, np.roll(start_K2, -1, axis=0), strict=True):
            top, bottom = np.ceil(np.clip(sorted((y0, y1)), 0, height) - 0.5).astype(int)
            if top == bottom:  # the edge crosses no row's centre line
                continue
            rows = np.arange(top, bottom)
            crossed = x0 + (rows + 0.5 - y0) / (y1 - y0) * (x1 - x0)
            flips_HW[rows, np.ceil(np.clip(crossed, 0, width) - 0.5).astype(int)] ^= True
    return np.logical_xor.accumulate(flips_HW, axis=1)[:, :width]


def encode_polygons(mask_HW: np.ndarray) -> list[np.ndarray]:
    """Trace bool H×W as closed float32 rings (K, 2) along the pixel edges, which are exact.

    Parts run clockwise on the screen, holes anticlockwise. Pixels that touch only at a corner are
    of separate parts, so that two rings may share a vertex.
    """
    y_N, x_N = (np.flatnonzero(mask_HW.any(axis=axis)) for axis in (1, 0))
    if not len(y_N):
        return []
    corner_2 = np.array([x_N[0], y_N[0]])
    around = np.pad(mask_HW[y_N[0] : y_N[-1] + 1, x_N[0] : x_N[-1] + 1], 1)
    above_left, above_right = around[:-1, :-1], around[:-1, 1:]
    below_left, below_right = around[1:, :-1], around[1:, 1:]
    turns = above_left ^ above_right ^ below_left ^ below_right
    touch = (above_left == below_right) & (above_right == below_left) & (above_left != above_right)
    y_N, x_N = np.nonzero(turns | touch)
    vertex_N = np.repeat(np.arange(len(x_N)), 1 + touch[y_N, x_N])  # two where pixels touch
    y_N, x_N = y_N[vertex_N], x_N[vertex_N]
    # Vertices 2i and 2i + 1 are the ends of a horizontal edge in order of rows, of a vertical one
    # in order of columns. The first of two at one place is the left one, and it is the lower one
    # if the pixel below left is inside.
    number_N = np.arange(len(x_N))
    tie_N = np.where(below_left[y_N, x_N], -number_N, number_N)
    column_N2 = np.lexsort((tie_N, y_N, x_N)).reshape(-1, 2)
    opposite_N = np.empty_like(number_N)
    opposite_N[column_N2] = column_N2[:, ::-1]
    point_N2 = (np.stack([x_N, y_N], axis=1) + corner_2).astype(np.float32)
    rings = _walk((number_N ^ 1).tolist(), opposite_N.tolist(), below_right[y_N, x_N].tolist())
    return [point_N2[ring] for ring in rings]


def _walk(beside: list[int], opposite: list[int], is_part: list[bool]) -> Iterator[list[int]]:
    """Yield rings of vertices that are linked horizontally and vertically in turn.

    The first vertex of a ring is its top-left corner: parts go right from it, holes go down.
    """
    seen = [False] * len(beside)
    for start, horizontal in enumerate(is_part):
        ring, at = [], start
        while not seen[at]:
            seen[at] = True
            ring.append(at)
            at = beside[at] if horizontal else opposite[at]
            horizontal = not horizontal
        if ring:
            yield ring


def decode_label_map(png: bytes) -> np.ndarray:
    """Decode a one-channel PNG of 8 or 16 bits to int32 H×W; the type's maximum becomes -1."""
    stored = decode_levels(png)
    background = 0xFF if stored.dtype == np.uint8 else 0xFFFF
    label_map = stored.astype(np.int32)
    return np.where(label_map == background, -1, label_map)


def decode_ids(png: bytes) -> np.ndarray:
    """Decode a panoptic PNG to int32 H×W ids: red + 256 × green + 65536 × blue; 0 is no segment."""
    colours = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(np.int32)
    return colours @ np.array([1, 256, 65536], np.int32)
