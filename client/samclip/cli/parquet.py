"""Parquet files of anybody, read without trust in the sizes that they state.

A page states its size, and the reader of Arrow believes it: a few kB may state gigabytes. So the
headers of the pages are read here first, from the bytes on their way to Arrow.
"""

import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROOM_BYTES = 64 * 2**20
"""What the columns of a row group may unpack to in any case."""
PAGE_ROOM_BYTES = 2 * 2**20
"""What one page may in any case: most writers begin another after 1 MiB."""
PAGE_RATIO, GROUP_RATIO = 4, 64
"""And beside it, as a multiple of their bytes: photographs are compressed already."""
MOST_FOOTER_BYTES = 8 * 2**20
"""The footer takes some 200 times its bytes in memory."""
MOST_ROWS_PER_BYTE = 8
MOST_HEADER_BYTES = 2**18
BUFFER_BYTES = 2**20
ENCODINGS = {0: "PLAIN", 2: "PLAIN_DICTIONARY", 3: "RLE", 5: "DELTA_BINARY_PACKED"}
ENCODINGS |= {8: "RLE_DICTIONARY", 9: "BYTE_STREAM_SPLIT"}
"""Those that state nothing of their own: lengths of the others unpack to gigabytes again."""
Bytes = bytes | memoryview
PADDED = re.compile("parquet-mr(?! version (1[.]([3-9]|[0-9]{2})|[2-9]))")
"""Writers before 2014, for whose files Arrow reads beyond the end of a column."""


class Table:
    """A Parquet file: its ``schema`` (Arrow's) and the numbers of rows of its row groups."""

    def __init__(self, file: io.BufferedReader) -> None:
        """Read the footer. Raises ValueError for a file that is not Parquet, OSError."""
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 8))
        tail = file.read(8)
        footer = int.from_bytes(tail[:4], "little")
        if tail[4:] != b"PAR1" or footer > min(size, MOST_FOOTER_BYTES):
            raise ValueError(f"no Parquet with a footer of up to {MOST_FOOTER_BYTES // 2**20} MiB")
        self._file = _Watched(file)
        self._table = pq.ParquetFile(self._file, buffer_size=BUFFER_BYTES, pre_buffer=False)
        self.schema = self._table.schema_arrow
        found = self._table.metadata
        self.groups = [found.row_group(group).num_rows for group in range(found.num_row_groups)]
        if min(self.groups, default=0) < 0 or sum(self.groups) > MOST_ROWS_PER_BYTE * size:
            raise ValueError(f"{sum(self.groups):,} rows, too many for {size:,} bytes")
        if PADDED.match(found.created_by or ""):
            raise ValueError(f"a file of {found.created_by}, before 2014: write it again")

    def batches(self, group: int, names: Sequence[str], most: int) -> Iterator[pa.RecordBatch]:
        """Yield up to ``most`` rows at once of the columns of a row group; fewer if rows are large.

        Raises ValueError if a page would unpack to much more than its bytes.
        """
        about = self._table.metadata.row_group(group)
        columns = (about.column(index) for index in range(about.num_columns))
        begins = tuple(f"{name}." for name in names)
        used = [each for each in columns if f"{each.path_in_schema}.".startswith(begins)]
        largest = self._file.watch(used)
        mean = sum(each.total_uncompressed_size for each in used) // max(1, about.num_rows)
        at_once = min(most, BUFFER_BYTES * 16 // max(1, mean), ROOM_BYTES // max(1, largest))
        yield from self._table.iter_batches(max(1, at_once), [group], [*names], use_threads=False)


class _Watched(io.RawIOBase):
    """The file as Arrow reads it: once columns are watched, their pages alone, in order."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._columns: list[_Column] | None = None

    def watch(self, columns: Sequence[Any]) -> int:
        """Watch the columns of a row group; return the sizes of their dictionaries together."""
        budget = _Budget(max(1, len(columns)))
        self._columns = [_Column(each, budget) for each in columns]
        return sum(each.dictionary_bytes(self._file) for each in self._columns)

    def read(self, size: int | None = -1) -> bytes:
        start = self._file.tell()
        block = self._file.read(-1 if size is None else size)
        if self._columns is not None:
            mine = [each for each in self._columns if each.start <= start < each.end]
            if not mine:
                raise ValueError("the pages of its columns are not where it states them")
            for each in mine:
                each.check(self._file, start, block)
        return block

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


class _Budget:
    """What the pages of a row group may unpack to, together."""

    def __init__(self, columns: int) -> None:
        self._page = max(ROOM_BYTES // columns, PAGE_ROOM_BYTES)
        self._unpacked = self._packed = 0

    def take(self, unpacked: int, packed: int) -> None:
        self._unpacked, self._packed = self._unpacked + unpacked, self._packed + packed
        page, group = self._page + PAGE_RATIO * packed, ROOM_BYTES + GROUP_RATIO * self._packed
        if unpacked > page or self._unpacked > group:
            raise ValueError(f"a page of {packed:,} bytes would unpack to {unpacked:,}")


class _Column:
    """The place of a column of a row group, and of the first page that was not checked yet."""

    def __init__(self, about: Any, budget: _Budget) -> None:
        offsets = (about.data_page_offset, about.dictionary_page_offset or about.data_page_offset)
        self.start = self._next = min(offset for offset in offsets if offset > 0)
        self.end = self.start + about.total_compressed_size
        self._budget = budget

    def dictionary_bytes(self, file: io.BufferedReader) -> int:
        """Return the size of the dictionary, which is the first page or is none."""
        file.seek(self.start)
        header, _ = _header(file.read(MOST_HEADER_BYTES))
        return _size(header, 2) if 7 in header else 0

    def check(self, file: io.BufferedReader, start: int, block: bytes) -> None:
        """Check the pages that begin in a block, before Arrow has it."""
        if start > self._next:
            raise ValueError("the pages of a column are not read in order")
        stop = start + len(block)
        while self._next < min(stop, self.end):
            data = memoryview(block)[self._next - start :]
            try:
                header, length = _struct(data, 0)
            except IndexError:  # its header ends behind the block, or never
                header, length = _header(bytes(data) + file.read(MOST_HEADER_BYTES))
                file.seek(stop)
            unpacked, packed = _size(header, 2), _size(header, 3)
            self._check_kind(header)
            self._budget.take(unpacked, packed)
            self._next += length + packed

    def _check_kind(self, header: dict[int, Any]) -> None:
        if 7 in header and self._next != self.start:
            raise ValueError("a dictionary behind other pages")
        encoding = header.get(5, {}).get(2, 0), header.get(8, {}).get(4, 0)
        if not ENCODINGS.keys() >= {*encoding}:
            expected = ", ".join(ENCODINGS.values())
            raise ValueError(f"a page of encoding {max(encoding)}, expected {expected}")


def _size(header: dict[int, Any], field: int) -> int:
    size = header.get(field)
    if not isinstance(size, int) or not 0 <= size < 2**31:
        raise ValueError("a page without its size")
    return size


def _header(data: bytes) -> tuple[dict[int, Any], int]:
    """Return the fields of a page's header by their numbers, and its length in bytes."""
    try:
        return _struct(data, 0)
    except IndexError:
        raise ValueError("the header of a page is cut off or too long") from None


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
