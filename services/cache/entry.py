"""Cache entries: one output of the encoder for one image, its key in Redis and its bytes there.

The key consists of the contract (digest of the weights, version of the preprocessing, resolution,
dtype, digest of the graphs, layout) and the sha256 of the encoded file, followed by the side of the
frame if it is not the checkpoint's ``image_size``. The bytes contain a digest of the key and a
checksum, so that a damaged, truncated or misplaced entry is a miss.
"""

import hashlib
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray
from samclip.v1 import samclip_pb2 as pb

from samclip_core.geometry import PREPROCESS_VERSION, Geometry
from samclip_core.regions import REGIONS_VERSION

LAYOUT = "1"
"""Version of the keys and bytes below. Raise it if old entries would be misread."""

PREFIX = "samclip:cache:"

StoredAs = Literal["float16", "int8"]

_MAGIC = b"SCE1"
_SUM = struct.Struct("<4s16s")  # magic, checksum of the rest
# Digest of the key; height, width and frame of the image; dtype, ndim, shape and bytes of the
# payload. The padding aligns the payload.
_HEADER = struct.Struct("<32s3I2B3IQ10x")
_START = _SUM.size + _HEADER.size
_DTYPES = ("float16", "int8", "uint8")
_SMALLEST_STEP = np.float16(2**-14)  # smaller float16 numbers are subnormal
_LARGEST_STEP = np.float16(511.75)  # 128 times this is the largest float16


@dataclass(frozen=True, eq=False)
class Entry:
    """One output: a read-only ``array``, and the geometry of the image.

    The array is float16, or the bytes of a file of regions. ``step_D`` (float16) holds the
    quantisation scales of an array that was rounded to int8: all values of a channel are -127 to
    127 times its scale, so int8 stores them without further loss.
    """

    array: NDArray[Any]
    geometry: Geometry
    step_D: NDArray[np.float16] | None = None

    @classmethod
    def of(cls, array: NDArray[np.floating], geometry: Geometry, stored_as: StoredAs) -> "Entry":
        """Return the entry as a cache with ``stored_as`` returns it, so that hits and misses agree.

        A float16 ``array`` is used without a copy: it must not be a view of a larger array, which
        would stay in memory, and must not change afterwards. Only maps (D×h×w) become int8: a
        vector is small and would lose more precision.
        """
        if stored_as == "int8" and array.ndim == 3:
            step_D = _steps(array)
            entry = cls(_restore(_quantise(array, step_D), step_D), geometry, step_D)
        else:
            entry = cls(np.asarray(array, np.float16, order="C"), geometry)
        entry.array.flags.writeable = False
        return entry


Entries = Mapping[pb.Output, Entry]


def computed(dtype: str, graphs: str) -> str:
    """Return the precision and the graphs of an encoder, as ``ModelInfo`` has them, in one word."""
    return f"{dtype}:{graphs}"


def contract(digest: str, image_size: int, computed: str, stored_as: StoredAs) -> str:
    """Return the part of a key that identifies all inputs of an entry except the image.

    ``computed`` is how the encoder computes, from the function of this name.
    """
    return f"{digest}:{PREPROCESS_VERSION}:{image_size}:{computed}:{stored_as}-{LAYOUT}"


def at_size(cache_key: str, size: int, image_size: int) -> str:
    """Return the cache key of an image in a frame of ``size``; ``image_size`` has the plain key."""
    return cache_key if size == image_size else f"{cache_key}:{size}"


def name(contract: str, image_key: str, output: pb.Output) -> str:
    """Return the key of an entry. Redis Cluster hashes the part in braces: one slot per image."""
    version = f"-{REGIONS_VERSION}" if output == pb.REGIONS else ""
    return f"{PREFIX}{contract}:{{{image_key}}}:{pb.Output.Name(output)}{version}"


def pack(name: str, entry: Entry) -> bytes:
    """Return the bytes of an entry whose key is ``name``."""
    payload, stored_as = _payload(entry)
    geometry = entry.geometry
    header = _HEADER.pack(
        _digest(name),
        geometry.height,
        geometry.width,
        geometry.size,
        _DTYPES.index(stored_as),
        entry.array.ndim,
        *entry.array.shape,
        *(1,) * (3 - entry.array.ndim),
        sum(part.nbytes for part in payload),
    )
    checksum = xxhash.xxh3_128(header)
    for part in payload:
        checksum.update(part)
    return b"".join((_SUM.pack(_MAGIC, checksum.digest()), header, *payload))


def unpack(name: str, data: bytes) -> Entry | None:
    """Return the entry, a view of ``data`` unless int8; None unless ``pack`` wrote these bytes."""
    if len(data) < _START:
        return None
    magic, checksum = _SUM.unpack_from(data)
    if magic != _MAGIC or xxhash.xxh3_128_digest(memoryview(data)[_SUM.size :]) != checksum:
        return None
    owner, *header = _HEADER.unpack_from(data, _SUM.size)
    if owner != _digest(name):
        return None
    try:
        return _read(data, *header)
    except (ValueError, IndexError):  # a valid checksum, but not written by ``pack``
        return None


def _read(data: bytes, height: int, width: int, size: int, dtype: int, *layout: int) -> Entry:
    """Return the entry of a header. Raises ValueError or IndexError if the header is invalid."""
    ndim, *sides, length = layout
    shape = sides[:ndim]
    geometry = Geometry(height, width, size)
    stored_as = _DTYPES[dtype]
    value_bytes = math.prod(shape) * np.dtype(stored_as).itemsize
    step_bytes = 2 * shape[0] if stored_as == "int8" else 0
    if length != len(data) - _START or length != step_bytes + value_bytes:
        raise ValueError(f"{length} bytes for a {stored_as} array of shape {shape}")
    if stored_as != "int8":
        values = np.frombuffer(data, np.dtype(stored_as).newbyteorder("<"), offset=_START)
        return Entry(values.reshape(shape), geometry)
    step_D = np.frombuffer(data, "<f2", shape[0], _START)
    if not (np.isfinite(step_D).all() and (np.abs(step_D) <= _LARGEST_STEP).all()):
        raise ValueError("scales that overflow float16")
    steps_Dhw = np.frombuffer(data, np.int8, offset=_START + step_bytes).reshape(shape)
    array = _restore(steps_Dhw, step_D)
    array.flags.writeable = False
    return Entry(array, geometry, step_D)


def _payload(entry: Entry) -> tuple[list[memoryview], str]:
    if entry.step_D is None:
        dtype = entry.array.dtype
        return [np.ascontiguousarray(entry.array, dtype.newbyteorder("<")).data], dtype.name
    steps = np.ascontiguousarray(entry.step_D, "<f2")
    return [steps.data, _quantise(entry.array, entry.step_D).data], "int8"


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _steps(array_Dhw: NDArray[np.floating]) -> NDArray[np.float16]:
    largest_D = np.abs(array_Dhw).max(axis=(1, 2)).astype(np.float32)
    return np.maximum((largest_D / 127).astype(np.float16), _SMALLEST_STEP)


def _quantise(array_Dhw: NDArray[np.floating], step_D: NDArray[np.float16]) -> NDArray[np.int8]:
    steps = array_Dhw.astype(np.float32) / step_D.astype(np.float32)[:, None, None]
    return np.rint(steps).clip(-127, 127).astype(np.int8)


def _restore(array_Dhw: NDArray[np.int8], step_D: NDArray[np.float16]) -> NDArray[np.float16]:
    return (array_Dhw.astype(np.float32) * step_D.astype(np.float32)[:, None, None]).astype(
        np.float16
    )
