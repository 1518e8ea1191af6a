"""Tensors of the Open Inference Protocol, as raw bytes and as JSON values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samclip_core.errors import InvalidRequest
from services.gateway.adapters.adapter import image_of

DTYPES: dict[str, np.dtype[Any]] = {
    "FP32": np.dtype("<f4"),
    "INT32": np.dtype("<i4"),
    "UINT8": np.dtype("u1"),
}
"""The protocol's datatypes that the models use, besides BYTES."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}
PREFIX = 4
"""Bytes of the length in front of each element of a raw BYTES tensor, little-endian."""
MAX_SIDES = 8


@dataclass(frozen=True)
class Spec:
    """A tensor of a model; a side of -1 may have any length."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def fits(self, datatype: str, shape: Sequence[int]) -> bool:
        """Return whether a tensor has this datatype and shape."""
        return (
            datatype == self.datatype
            and len(shape) == len(self.shape)
            and all(mine in (-1, theirs) for mine, theirs in zip(self.shape, shape, strict=True))
        )

    def __str__(self) -> str:
        return f"{self.datatype} {[*self.shape]}"


def elements(shape: Sequence[int]) -> int:
    """Return the number of elements. Raises InvalidRequest for a shape that no tensor has."""
    if len(shape) > MAX_SIDES or any(not isinstance(side, int) or side < 0 for side in shape):
        raise InvalidRequest(f"the shape {[*shape][:MAX_SIDES]} is not one of a tensor")
    return math.prod(shape)


def from_raw(spec: Spec, shape: Sequence[int], data: bytes) -> NDArray[Any]:
    """Return the tensor in ``data``: numbers, or objects of type bytes. Raises InvalidRequest."""
    count = elements(shape)
    if spec.datatype == "BYTES":
        return _array_of(spec, _split(spec.name, data), count, shape)
    dtype = DTYPES[spec.datatype]
    if len(data) != count * dtype.itemsize:
        raise InvalidRequest(
            f"input {spec.name!r} of {count} elements needs {count * dtype.itemsize} bytes, "
            f"got {len(data)}"
        )
    return np.frombuffer(data, dtype).reshape(shape)


def _split(name: str, data: bytes) -> list[bytes]:
    found, start = [], 0
    while start < len(data):
        end = start + PREFIX + int.from_bytes(data[start : start + PREFIX], "little")
        if start + PREFIX > len(data) or end > len(data):
            raise InvalidRequest(f"input {name!r} ends within an element: check the lengths")
        found.append(data[start + PREFIX : end])
        start = end
    return found


def from_values(spec: Spec, shape: Sequence[int], values: Any) -> NDArray[Any]:
    """Return the tensor in a list, nested or flat, of JSON values or protobuf's.

    A string of ``image`` is base64 or a data URI. Raises InvalidRequest.
    """
    count = elements(shape)
    if spec.datatype == "BYTES":
        flat = values if isinstance(values, list) else [values]
        return _array_of(spec, [_bytes(spec.name, one) for one in flat], count, shape)
    try:
        return np.array(values, DTYPES[spec.datatype]).reshape(shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidRequest(f"input {spec.name!r} is not a tensor of {spec}: {error}") from error


def _bytes(name: str, value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if name == "image":
        return image_of(value, "input 'image'").encoded
    if not isinstance(value, str):
        raise InvalidRequest(f"input {name!r} has an element that is not a string")
    return value.encode()


def _array_of(
    spec: Spec, found: Sequence[bytes], count: int, shape: Sequence[int]
) -> NDArray[np.object_]:
    if len(found) != count:
        raise InvalidRequest(f"input {spec.name!r} has {len(found)} elements, its shape {count}")
    array = np.empty(count, np.object_)
    array[:] = found
    return array.reshape(shape)


def text_of(element: bytes, name: str) -> str:
    """Return an element as text. Raises InvalidRequest."""
    try:
        return element.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"input {name!r} is not UTF-8: {error.reason}") from error
