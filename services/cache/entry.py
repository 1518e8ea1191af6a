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
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from samclip.v1 import samclip_pb2 as pb

from samclip_core.geometry import PREPROCESS_VERSION, Geometry
from samclip_core.regions import REGIONS_VERSION

LAYOUT = "2"
"""Version of the keys and bytes below. Raise it if old entries would be misread."""

PREFIX = "samclip:cache:"

_MAGIC = b"SCE1"
_SUM = struct.Struct("<4s16s")  # magic, checksum of the rest
# Digest of the key; height, width and frame of the image; dtype, ndim, shape and bytes of the
# payload; whether the image fills its frame. The padding aligns the payload.
_HEADER = struct.Struct("<32s3I2B3IQ?9x")
_START = _SUM.size + _HEADER.size
_DTYPES = ("float16", "uint8")


@dataclass(frozen=True, eq=False)
class Entry:
    """One output: a read-only ``array``, and the geometry of the image.

    The array is float16, or the bytes of a file of regions.
    """

    array: NDArray[Any]
    geometry: Geometry

    @classmethod
    def of(cls, array: NDArray[np.floating], geometry: Geometry) -> "Entry":
        """Return the entry as a cache returns it, so that hits and misses agree.

        A float16 ``array`` is used without a copy: it must not be a view of a larger array, which
        would stay in memory, and must not change afterwards.
        """
        entry = cls(np.asarray(array, np.float16, order="C"), geometry)
        entry.array.flags.writeable = False
        return entry


Entries = Mapping[pb.Output, Entry]


def computed(dtype: str, graphs: str) -> str:
    """Return the precision and the graphs of an encoder, as ``ModelInfo`` has them, in one word."""
    return f"{dtype}:{graphs}"


def contract(digest: str, image_size: int, computed: str) -> str:
    """Return the part of a key that identifies all inputs of an entry except the image.

    ``computed`` is how the encoder computes, from the function of this name.
    """
    return f"{digest}:{PREPROCESS_VERSION}:{image_size}:{computed}:{LAYOUT}"


def at_size(cache_key: str, size: int, image_size: int) -> str:
    """Return the cache key of an image in a frame of ``size``; ``image_size`` has the plain key."""
    return cache_key if size == image_size else f"{cache_key}:{size}"


def name(contract: str, cache_key: str, output: pb.Output) -> str:
    """Return the key of an entry. Redis Cluster hashes the part in braces: one slot per image."""
    version = f"-{REGIONS_VERSION}" if output == pb.REGIONS else ""
    return f"{PREFIX}{contract}:{{{cache_key}}}:{pb.Output.Name(output)}{version}"


def pack(name: str, entry: Entry) -> bytes:
    """Return the bytes of an entry whose key is ``name``."""
    payload = np.ascontiguousarray(entry.array, entry.array.dtype.newbyteorder("<")).data
    geometry = entry.geometry
    header = _HEADER.pack(
        _digest(name),
        geometry.height,
        geometry.width,
        geometry.size,
        _DTYPES.index(entry.array.dtype.name),
        entry.array.ndim,
        *entry.array.shape,
        *(1,) * (3 - entry.array.ndim),
        payload.nbytes,
        geometry.squash,
    )
    checksum = xxhash.xxh3_128(header)
    checksum.update(payload)
    return b"".join((_SUM.pack(_MAGIC, checksum.digest()), header, payload))


def unpack(name: str, data: bytes) -> Entry | None:
    """Return the entry, a view of ``data``; None unless ``pack`` wrote these bytes."""
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
    ndim, *sides, length, squash = layout
    shape = sides[:ndim]
    geometry = Geometry(height, width, size, bool(squash))
    kind = np.dtype(_DTYPES[dtype]).newbyteorder("<")
    if length != len(data) - _START or length != math.prod(shape) * kind.itemsize:
        raise ValueError(f"{length} bytes for a {kind} array of shape {shape}")
    return Entry(np.frombuffer(data, kind, offset=_START).reshape(shape), geometry)


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
