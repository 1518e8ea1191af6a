"""How files are read that a user, a setting or a checkpoint names: strangers may have made them.

Only regular files are opened, and their bytes are limited before they are parsed.
"""

import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray
from samclip.values.files import open_regular as open_regular

from samclip_core.errors import CheckpointError

MOST_BYTES = 2**26
"""Of a file that is held in memory."""
MOST_VALUES = 2**20
"""Of a JSON: an empty object takes 25 times its bytes in memory."""
MOST_LAYERS = 256
"""Of a part of a network."""
MOST_LEVELS = 32
"""Of nested values."""
_LAYERS = ("layers", "depth", "depths", "blocks", "neck_depth")
_HEADER_BYTES = 2**14
"""Of an array's file before its numbers, at most."""


def read(path: str | Path, most: int = MOST_BYTES) -> bytes:
    """Return a regular file. Raises OSError, and ValueError if it has more bytes than ``most``."""
    with open_regular(path) as file:
        stated = os.fstat(file.fileno()).st_size  # 0 of files that are made when they are read
        content = file.read(min(most, stated) + 1)
        if stated < len(content) <= most:
            content += file.read(most + 1 - len(content))
    if len(content) > most:
        raise ValueError(f"{path} has more than {most:,} bytes, expected a file of its kind")
    return content


def parsed(content: str | bytes, values: int = MOST_VALUES, name: str = "a JSON") -> Any:
    """Return the value of a JSON of at most so many ``values``. Raises ValueError."""
    encoded = content if isinstance(content, bytes) else content.encode(errors="surrogatepass")
    if sum(map(encoded.count, (b",", b"[", b"{"))) > values:
        raise ValueError(f"{name} has more than {values:,} values")
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError(f"{name} has too many levels") from error


def read_json(path: str | Path, most: int = MOST_BYTES, values: int = MOST_VALUES) -> Any:
    """Return the value of a JSON file. Raises OSError, ValueError."""
    return parsed(read(path, most), values, str(path))


def read_array(path: Path, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    """Return the array of an .npy file. Raises OSError, ValueError for another."""
    expected = (*shape,), False, np.dtype(dtype)
    content = read(path, _HEADER_BYTES + math.prod(shape) * expected[2].itemsize)
    file = io.BytesIO(content)
    if (found := _header(file)) != expected:
        raise ValueError(f"{path} has {found}, expected {expected}")
    return np.frombuffer(content, dtype, math.prod(shape), file.tell()).reshape(shape)


def mapped(path: Path) -> NDArray[Any]:
    """Map the array of an .npy file into memory. Raises OSError, ValueError for another."""
    with open_regular(path) as file:  # which is mapped, whatever has this name by then
        shape, by_column, dtype = _header(file)
        if by_column or dtype.hasobject:
            raise ValueError(f"{path} has {dtype}, expected rows of numbers")
        return np.memmap(file, dtype, "r", file.tell(), shape)


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, order and type of the array in an .npy file, of the version that is usual."""
    if npy.read_magic(file) != (1, 0):
        raise ValueError("an array of another version: expected one of numpy.save")
    return npy.read_array_header_1_0(file)


def check_layers(value: Any, where: str, name: str = "", levels: int = MOST_LEVELS) -> None:
    """Raise CheckpointError if nested values state more layers than networks have.

    A layer takes memory and time even before it has weights. So do values of too many levels.
    """
    again = "download or convert it again"
    if levels < 0:
        raise CheckpointError(f"{where} has more than {MOST_LEVELS} levels: {again}")
    if isinstance(value, dict):
        for key, inner in value.items():
            check_layers(inner, where, key, levels - 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            check_layers(inner, where, name, levels - 1)
    elif name in _LAYERS and isinstance(value, int | float) and value > MOST_LAYERS:
        raise CheckpointError(
            f"{where} states {name} {value}, expected up to {MOST_LAYERS} layers: {again}"
        )
