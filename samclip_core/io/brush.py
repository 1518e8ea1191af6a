"""Label Studio's brushes: masks as run lengths of RGBA pixels, row by row."""

import numpy as np
from numpy.typing import NDArray
from samclip.values.runs import Runs

from samclip_core.errors import InvalidRequest
from samclip_core.io.masks import BoolMask

MAX_EDGES = 2**19
"""Most edges in the rows of a mask, each of 3.4 bytes: many times those of a photograph's object at
64 megapixels."""
MAX_VALUES = 2**19
"""Most values of a brush that is read, each of about a microsecond."""
LONGEST = 2**14  # pixels of one run: it has four values for each, and their number 16 bits


def encode_brush(runs: Runs) -> bytes:
    """Encode the runs of a mask; memory depends on its outline, not on its pixels.

    Header: the number of values in 32 bits; their bits less 1 in 5; four widths of lengths less 1
    in 4 each, here all 16. Then runs: a set bit, the index of the width in 2, the length less 1,
    the value. Raises InvalidRequest for a mask of more than MAX_EDGES.
    """
    size, edge_N = runs.height * runs.width, _row_edges(runs)
    start_K = np.unique(np.concatenate([edge_N[edge_N < size], np.arange(0, size, LONGEST)]))
    length_K = 4 * np.diff(start_K, append=size)  # red, green, blue and alpha are alike
    set_K = np.searchsorted(edge_N, start_K, side="right") % 2
    run_K = (0b111 << 24) + (length_K - 1 << 8) + 255 * set_K
    header = _bits(np.array([4 * size, 7 << 27 | 2**16 - 1 << 11])).reshape(-1)[:53]
    return np.packbits(np.append(header, _bits(run_K)[:, 5:])).tobytes()


def decode_brush(packed: bytes, height: int, width: int) -> BoolMask:
    """Return the pixels of a brush, where alpha is set. Raises ValueError if it has another size.

    The format is that of ``encode_brush``; a run without the set bit has a value for each place.
    """
    bits, at = "".join(f"{byte:08b}" for byte in packed[: 8 * MAX_VALUES]), 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    total, size = take(32), take(5) + 1
    widths = [take(4) + 1 for _ in range(4)]
    if total != 4 * height * width:
        raise ValueError(f"the brush has {total:,} values, expected 4 for each pixel")
    ends, values = [0], list[int]()
    while ends[-1] < total:
        if len(values) > MAX_VALUES:
            raise ValueError(f"the brush has more than {MAX_VALUES:,} values: draw a polygon")
        same = take(1)
        length = take(widths[take(2)]) + 1
        for _ in range(1 if same else min(length, MAX_VALUES)):
            values.append(take(size))
            ends.append(ends[-1] + (length if same else 1))
    if ends[-1] > total:
        raise ValueError("the brush has more values than its header says")
    count_K = np.diff(np.array(ends) // 4)  # pixels whose alpha, the last of four, is in the run
    return np.repeat(np.array(values) > 0, count_K).reshape(height, width)


def _bits(values: NDArray[np.int64]) -> NDArray[np.uint8]:
    return np.unpackbits(values.astype(">u4").view(np.uint8)).reshape(-1, 32)


def _row_edges(runs: Runs) -> NDArray[np.int64]:
    """Return where runs begin and end in row-major order."""
    bounds_K = np.append(runs.start_K, runs.end_K)
    # A column differs from the one before it at the offsets that are in a run of either the mask
    # or the mask moved by a column.
    start_N, end_N = _odd(np.append(bounds_K, bounds_K + runs.height)).reshape(-1, 2).T
    length_N = end_N - start_N
    if (count := int(length_N.sum())) > MAX_EDGES:
        raise InvalidRequest(
            f"a brush would have {count:,} edges, at most {MAX_EDGES:,}: ask for polygons"
        )
    offset = np.arange(count) + np.repeat(end_N - length_N.cumsum(), length_N)
    column, row = np.divmod(offset, runs.height)
    return _odd(row * runs.width + column)  # the end of a row is the beginning of the next one


def _odd(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return in order the values that occur an odd number of times."""
    found, count = np.unique(values, return_counts=True)
    return found[count % 2 == 1]
