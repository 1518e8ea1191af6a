"""Parquet files of anybody, read without trust in the sizes that they state.

A page states its size, and the reader of Arrow believes it: a few kB may state gigabytes. So the
headers of the pages are read here first, from the bytes on their way to Arrow.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
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
    """A Parquet file: its ``schema`` (Arrow's), ``metadata``, and the rows of its row groups."""

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
        self.metadata: Mapping[bytes, bytes] = found.metadata or {}
        self.groups = [found.row_group(group).num_rows for group in range(found.num_row_groups)]
        if min(self.groups, default=0) < 0 or sum(self.groups) > MOST_ROWS_PER_BYTE * size:
            raise ValueError(f"{sum(self.groups):,} rows, too many for {size:,} bytes")
        if PADDED.match(found.created_by or ""):
            raise ValueError(f"a file of {found.created_by}, before 2014: write it again")

    def batches(self, group: int, names: Sequence[str], most: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of columns of a row group, ``most`` at once, or singly if they are large.

        Raises ValueError if a page would unpack to much more than its bytes.
        """
        schema, begins = self._table.schema, tuple(f"{name}." for name in names)
        leaves = [schema.column(number) for number in range(len(schema.names))]
        used = [leaf for leaf in leaves if f"{leaf.path}.".startswith(begins)]
        starts = {self._start(group, leaf.path): leaf for leaf in used}
        if len(starts) < len(used):
            raise ValueError("two columns have the same bytes")
        done = 0
        for at_once in (most, 1):
            place = 0
            try:
                self._file.watch(starts, at_once)
                for batch in self._batches(at_once, group, names):
                    place += len(batch)
                    if place > done:
                        yield batch.slice(max(0, len(batch) - (place - done)))
                        done = place
                return
            except Exception:
                if at_once == 1 or not self._file.large:
                    raise

    def _start(self, group: int, leaf: str) -> int:
        """Return where Arrow begins to read a column: it ends this process for some metadata."""
        self._file.watch(None)
        with suppress(Exception):
            next(self._batches(1, group, [leaf]), None)
        if self._file.asked is None:
            raise ValueError(f"the column {leaf} cannot be read")
        return self._file.asked

    def _batches(self, most: int, group: int, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        found: Iterator[pa.RecordBatch] = self._table.iter_batches(
            most, [group], [*names], use_threads=False
        )
        return found


class _Watched(io.RawIOBase):
    """The file as Arrow reads it: the footer, and then the pages of columns alone, in order."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._columns: dict[int, _Pages] | None = None
        self._probed = False
        self.asked: int | None = None
        self.large = False

    def watch(self, starts: Mapping[int, Any] | None, at_once: int = 1) -> None:
        """Let pages of columns be read from their places; with None, note one in ``asked``.

        ``large`` then says whether rows were too large to be read ``at_once``.
        """
        self._probed, self.asked, self.large = starts is None, None, False
        budget = _Budget(max(1, len(starts or ())), at_once)
        self._columns = {at: _Pages(at, leaf, budget) for at, leaf in (starts or {}).items()}

    def read(self, size: int | None = -1) -> bytes:
        start = self._file.tell()
        if self._probed:
            self.asked = start
            raise ValueError("the place is known")
        block = self._file.read(-1 if size is None else size)
        if self._columns is not None:
            try:
                self._pages(self._columns, start).check(self._file, start, block)
            except _Large:
                self.large = True
                raise
        return block

    def _pages(self, columns: dict[int, "_Pages"], start: int) -> "_Pages":
        """Return the pages that are read at a place: the first ones of a column, or the next."""
        inside = [each for each in columns.values() if each.read_to == start != each.start]
        if start in columns and columns[start].read_to == start:
            if any(each.next > start for each in inside):
                raise ValueError("two columns have the same bytes")
            return columns[start]
        if not inside:
            raise ValueError("the pages of a column are not read in order")
        return inside[0]

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


class _Large(ValueError):
    """Rows that are too large for the number that is read at once."""


class _Budget:
    """What the pages of a row group may unpack to, together."""

    def __init__(self, columns: int, at_once: int) -> None:
        self._page, self._row = max(ROOM_BYTES // columns, PAGE_ROOM_BYTES), ROOM_BYTES // at_once
        self._at_once = at_once
        self._unpacked = self._packed = self._repeated = 0

    def take(self, leaf: Any, header: dict[int, Any]) -> int:
        """Count a page of a column; return its packed size. Raises ValueError."""
        unpacked, packed = _number(header, 2), _number(header, 3)
        value = unpacked if leaf.physical_type == "BYTE_ARRAY" else 0
        """Of a dictionary: that of every row may be its largest."""
        for field, place in ((5, 2), (8, 4)):  # both forms of pages of data
            if about := header.get(field):
                encoding = _number(about, place)
                if encoding not in ENCODINGS:
                    expected = ", ".join(ENCODINGS.values())
                    raise ValueError(f"a page of encoding {encoding}, expected {expected}")
                count = _number(about, 1)
                value = value if 7 in header else unpacked // max(1, count)
                self._repeated += count if leaf.max_repetition_level else 0
        self._unpacked, self._packed = self._unpacked + unpacked, self._packed + packed
        page, group = self._page + PAGE_RATIO * packed, ROOM_BYTES + GROUP_RATIO * self._packed
        repeated = ROOM_BYTES // 16 + GROUP_RATIO * self._packed
        if unpacked > page or self._unpacked > group or self._repeated > repeated:
            raise ValueError(f"a page of {packed:,} bytes would unpack to {unpacked:,}")
        if self._at_once > 1 and value > self._row:
            raise _Large("large rows")
        return packed


class _Pages:
    """The pages of a column: where the next one begins, and how far Arrow has read."""

    def __init__(self, start: int, leaf: Any, budget: _Budget) -> None:
        self.start = self.next = self.read_to = start
        self._leaf, self._budget = leaf, budget

    def check(self, file: io.BufferedReader, start: int, block: bytes) -> None:
        """Check the pages that begin in a block, before Arrow has it."""
        self.read_to = stop = start + len(block)
        while self.next < stop:
            data = memoryview(block)[self.next - start :]
            try:
                header, length = _struct(data, 0)
            except IndexError:  # its header ends behind the block, or never
                header, length = _header(bytes(data) + file.read(MOST_HEADER_BYTES))
                file.seek(stop)
            self.next += length + self._budget.take(self._leaf, header)


def _number(header: dict[int, Any], field: int) -> int:
    number = header.get(field)
    if not isinstance(number, int) or not 0 <= number < 2**31:
        raise ValueError("the header of a page lacks a number")
    return number


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
