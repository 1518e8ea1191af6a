"""Tensors of the Open Inference Protocol, as raw bytes and as JSON values."""

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
MAX_SIDES = 8  # of a shape in a message
Sent = tuple[str, str, Sequence[int], Any]
"""A tensor as it came: its name, datatype and shape, and its raw bytes or its values."""


@dataclass(frozen=True)
class Spec:
    """A tensor of a model; a side of -1 may have any length."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def read(self, datatype: str, shape: Sequence[int], data: Any) -> NDArray[Any]:
        """Return a tensor sent as raw bytes or as values. Raises InvalidRequest if it is another.

        Values are a list of JSON's or protobuf's, nested or flat, in which an image is base64, a
        data URI or bytes. BYTES become objects of type bytes.
        """
        sides = zip(self.shape, shape, strict=False)
        fits = len(shape) == len(self.shape) and all(s in (-1, given) for s, given in sides)
        if datatype != self.datatype or not fits:
            found = f"{datatype[:20]} {[*shape][:MAX_SIDES]}"
            raise InvalidRequest(f"input {self.name!r} is {found}, expected {self}")
        if any(not isinstance(side, int) or side < 0 for side in shape):
            raise InvalidRequest(f"the shape {[*shape]} is not one of a tensor")
        try:
            if self.datatype == "BYTES":
                array = self._elements(data)
            elif isinstance(data, bytes):
                array = np.frombuffer(data, DTYPES[datatype])
            else:
                array = np.array(data, DTYPES[datatype])
            return array.reshape(shape)
        except (ValueError, TypeError, OverflowError) as error:
            raise InvalidRequest(f"input {self.name!r} is not {self}: {error}") from error

    def _elements(self, data: Any) -> NDArray[np.object_]:
        if isinstance(data, bytes):
            found = _split(self.name, data)
        else:
            flat = data if isinstance(data, list) else [data]
            found = [_bytes(self.name, one) for one in flat]
        array = np.empty(len(found), np.object_)
        array[:] = found
        return array

    def __str__(self) -> str:
        return f"{self.datatype} {[*self.shape]}"


def _split(name: str, data: bytes) -> list[bytes]:
    found, start = [], 0
    while start < len(data):
        end = start + PREFIX + int.from_bytes(data[start : start + PREFIX], "little")
        if start + PREFIX > len(data) or end > len(data):
            raise InvalidRequest(f"input {name!r} ends within an element: check the lengths")
        found.append(data[start + PREFIX : end])
        start = end
    return found


def _bytes(name: str, value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if name == "image":
        return image_of(value, "input 'image'").encoded
    if not isinstance(value, str):
        raise InvalidRequest(f"input {name!r} has an element that is not a string")
    return value.encode()


def text_of(element: bytes, name: str) -> str:
    """Return an element as text. Raises InvalidRequest."""
    try:
        return element.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"input {name!r} is not UTF-8: {error.reason}") from error
