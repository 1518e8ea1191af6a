"""Pages of Parquet as they state themselves: their headers, and the counts of their deltas."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow as pa

_PLAIN, _DICTIONARY, _RLE = 0, (2, 8), 3
_LENGTHS, _PREFIXES = 6, 7
"""Encodings DELTA_LENGTH_BYTE_ARRAY and DELTA_BYTE_ARRAY."""
ENCODINGS = {_PLAIN, *_DICTIONARY, _RLE, 5, _LENGTHS, _PREFIXES, 9}
Bytes = bytes | memoryview
LEAST_BLOCK = 128


class Page(NamedTuple):
    """The header of a page; ``values`` counts those that are null, too.

    ``about`` has the fields of a page of data by their numbers, which depend on its ``version``; a
    dictionary's are not used.
    """

    packed: int
    unpacked: int
    is_dictionary: bool = False
    values: int = 0
    encoding: int = _PLAIN
    version: int = 1
    about: Mapping[int, Any] = MappingProxyType({})

    @property
    def repeats(self) -> bool:
        """Whether a value may be read more than once."""
        return self.is_dictionary or self.encoding == _PREFIXES

    @property
    def has_deltas(self) -> bool:
        """Whether the page states counts of its own, which Arrow believes."""
        return self.encoding in (_LENGTHS, _PREFIXES)

    def check_deltas(self, content: bytes, leaf: Any, compression: str) -> None:
        """Raise ValueError if the lengths of texts are more than the values of the page."""
        try:
            data = self._values(content, leaf, compression)
            at = _deltas(data, 0, self.values)
            if self.encoding == _PREFIXES:
                _deltas(data, at, self.values)
        except (IndexError, OSError, pa.ArrowException) as error:
            raise ValueError(f"a page cannot be unpacked: {error}") from error

    def _values(self, content: bytes, leaf: Any, compression: str) -> Bytes:
        """Return the values, without the levels before them."""
        levels = 0
        if self.version == 2:
            levels = _number(self.about, 5) + _number(self.about, 6)
        elif {_number(self.about, 3), _number(self.about, 4)} != {_RLE}:
            raise ValueError("a page with levels of an encoding of old, beside lengths of texts")
        values = content[levels:]
        if compression != "UNCOMPRESSED" and self.about.get(7, True):
            name = {"LZ4": "lz4_raw"}.get(compression, compression.lower())
            values = pa.Codec(name).decompress(values, self.unpacked - levels, asbytes=True)
        at = 0
        if self.version == 1:
            for most in (leaf.max_repetition_level, leaf.max_definition_level):
                at += 4 + int.from_bytes(values[at : at + 4], "little") if most else 0
        return memoryview(values)[at:]


def header(data: Bytes) -> tuple[Page, int]:
    """Return the page whose header begins the data, and the header's length in bytes.

    Raises IndexError if it ends behind the data, ValueError if it is damaged.
    """
    found, length = _struct(data, 0)
    page = Page(_number(found, 3), _number(found, 2), 7 in found)
    for field, version, place in ((5, 1, 2), (8, 2, 4)):
        if about := found.get(field):
            encoding = _number(about, place)
            if encoding not in ENCODINGS:
                raise ValueError(f"a page of an unknown encoding, {encoding}")
            page = page._replace(
                values=_number(about, 1), encoding=encoding, version=version, about=about
            )
    return page, length


def _deltas(data: Bytes, at: int, most: int) -> int:
    """Return where integers end of which each is the last one plus a delta."""
    block, at = _varint(data, at)
    parts, at = _varint(data, at)
    count, at = _varint(data, at)
    _, at = _varint(data, at)  # the first one
    if count > most or block < LEAST_BLOCK or not 0 < parts <= block:
        raise ValueError(f"{count:,} lengths in a page of {most:,} values")
    left = count - 1
    while left > 0:
        _, at = _varint(data, at)  # the least delta
        widths, at = data[at : at + parts], at + parts
        for width in widths[: -(-left // (block // parts))]:
            at, left = at + width * (block // parts) // 8, left - block // parts
        if at > len(data):
            raise ValueError("the lengths of a page are cut off")
    return at


def _number(header: Mapping[int, Any], field: int) -> int:
    number = header.get(field)
    if not isinstance(number, int) or not 0 <= number < 2**31:
        raise ValueError("the header of a page lacks a number")
    return number


def _struct(data: Bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Read a struct in Thrift's compact protocol, as far as headers of pages use it."""
    found, number = dict[int, Any](), 0
    while byte := data[at]:
        at, kind = at + 1, byte & 15
        if not byte >> 4 or (number := number + (byte >> 4)) in found or depth > 3:
            raise ValueError("the header of a page is damaged")
        if kind in (1, 2):
            found[number] = kind == 1
        elif kind in (4, 5, 6):
            value, at = _varint(data, at)
            found[number] = value >> 1 ^ -(value & 1)
        elif kind == 8:
            length, at = _varint(data, at)
            found[number], at = None, at + length
        elif kind == 12:
            found[number], at = _struct(data, at, depth + 1)
        else:
            raise ValueError("the header of a page is damaged")
    return found, at + 1


def _varint(data: Bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 35:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            if value >= 2**32:
                break
            return value, at
    raise ValueError("the header of a page is damaged")
