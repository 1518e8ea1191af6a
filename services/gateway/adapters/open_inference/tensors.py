"""Tensors of the Open Inference Protocol, as raw bytes and as JSON values."""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samclip_core.errors import InvalidRequest
from services.gateway.adapters.adapter import image_of
from services.request.limits import MAX_FORM_PARTS

DTYPES: dict[str, np.dtype[Any]] = {
    "FP32": np.dtype("<f4"),
    "INT32": np.dtype("<i4"),
    "UINT8": np.dtype("u1"),
}
"""The protocol's datatypes that the models use, besides BYTES."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
PREFIX = 4  # bytes of the length in front of an element of a raw BYTES tensor, little-endian
MAX_ELEMENTS = MAX_FORM_PARTS  # of one input: more than the applications accept
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
        few = shape[: len(self.shape) + 1]  # of any number
        sides = zip(self.shape, few, strict=False)
        fits = len(few) == len(self.shape) and all(
            type(side) is int and side >= 0 and own in (-1, side) for own, side in sides
        )
        if datatype != self.datatype or not fits or prod(few) > MAX_ELEMENTS:
            raise InvalidRequest(
                f"input {self.name!r} is {datatype[:20]} {reprlib.repr([*few])}, expected {self} "
                f"of at most {MAX_ELEMENTS:,} elements"
            )
        try:
            if self.datatype == "BYTES":
                array = self._elements(data, prod(shape))
            elif isinstance(data, bytes):
                array = np.frombuffer(data, DTYPES[datatype])
            else:
                with np.errstate(over="raise"):
                    array = np.array(data, DTYPES[datatype])
            return array.reshape(shape)
        except (ValueError, TypeError, ArithmeticError) as error:
            raise InvalidRequest(f"input {self.name!r} is not {self}: {error}") from error

    def _elements(self, data: Any, most: int) -> NDArray[np.object_]:
        if isinstance(data, bytes):
            found = _split(self.name, data, most)
        else:
            flat = data if isinstance(data, list) else [data]
            found = [_bytes(self.name, one) for one in flat]
        array = np.empty(len(found), np.object_)
        array[:] = found
        return array

    def __str__(self) -> str:
        return f"{self.datatype} {[*self.shape]}"


def described(name: str, array: NDArray[Any]) -> dict[str, Any]:
    """Return the name, datatype and shape of an output, as both transports have them."""
    return {"name": name, "datatype": _NAMES[array.dtype], "shape": array.shape}


def _split(name: str, data: bytes, most: int) -> list[bytes]:
    found, start = list[bytes](), 0
    while start < len(data):
        end = start + PREFIX + int.from_bytes(data[start : start + PREFIX], "little")
        if start + PREFIX > len(data) or end > len(data) or len(found) == most:
            raise InvalidRequest(f"input {name!r} ends within an element, or has more than {most}")
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
