"""Masks as numpy arrays: decoding, and RLE in both directions, with numpy and Pillow only."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image


def decode_rle(counts: bytes, height: int, width: int) -> np.ndarray:
    """Decode COCO's compressed run lengths to bool H×W. Raises ValueError if they do not fill it.

    Each number is a group of characters (value + 48) of five bits, least significant first; 0x20
    is set on all but the last, and 0x10 of the last is the sign. From the fourth number on, it is
    the difference from the run two before. Runs are column-major and begin with zeros.
    """
    chars = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((chars & 0x20) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    shifts = 5 * (np.arange(len(chars)) - np.repeat(starts, ends - starts + 1))
    runs = np.add.reduceat((chars & 0x1F) << shifts, starts)
    runs -= np.where(chars[ends] & 0x10, 1 << (shifts[ends] + 5), 0)
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    if runs.min() < 0 or runs.sum() != height * width:
        raise ValueError(f"the run lengths of a mask do not fill {width}×{height} pixels")
    values = np.arange(len(runs)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, runs).reshape(width, height).T)


def encode_rle(mask_HW: np.ndarray) -> bytes:
    """Encode bool H×W as COCO's compressed run lengths; ``decode_rle`` describes them."""
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


def decode_png(png: bytes) -> np.ndarray:
    """Decode a one-channel PNG of 0 and 255 to bool H×W."""
    return np.asarray(Image.open(io.BytesIO(png))) > 127


def decode_levels(png: bytes) -> np.ndarray:
    """Decode a one-channel PNG of 8 bits to uint8 H×W."""
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


def unpack_bits(data: bytes, height: int, width: int) -> np.ndarray:
    """Unpack one bit per pixel, row-major, most significant bit first, to bool H×W."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=height * width)
    return bits.reshape(height, width).astype(bool)


def decode_label_map(png: bytes) -> np.ndarray:
    """Decode a one-channel PNG of 8 or 16 bits to int32 H×W; the type's maximum becomes -1."""
    stored = np.asarray(Image.open(io.BytesIO(png)))
    background = 0xFF if stored.dtype == np.uint8 else 0xFFFF
    label_map = stored.astype(np.int32)
    return np.where(label_map == background, -1, label_map)


def decode_ids(png: bytes) -> np.ndarray:
    """Decode a panoptic PNG to int32 H×W ids: red + 256 × green + 65536 × blue; 0 is no segment."""
    colours = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(np.int32)
    return colours @ np.array([1, 256, 65536], np.int32)
