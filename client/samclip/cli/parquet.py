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

from samclip.cli import pages

ROOM_BYTES, PAGE_RATIO = 2**29, 4
"""What pages at once, one of each column, may unpack to, and beside it as a multiple of theirs.

DuckDB ends a page after a row group, of some 30 MB for a column of sentences.
"""
GROUP_BYTES, GROUP_RATIO = 2**30, 64
"""The same for all pages of a row group, which take time."""
ROWS_BYTES = 64 * 2**20
"""Rows at once: above it, each is read singly."""
MOST_REPEATED = 2**22
"""Values in lists, beside the multiple of the bytes."""
MOST_FOOTER_BYTES = 8 * 2**20
"""The footer takes some 200 times its bytes in memory."""
MOST_ROWS_PER_BYTE = 8
MOST_HEADER_BYTES = 2**18
BUFFER_BYTES = 2**20
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
        used = [n for n, leaf in enumerate(leaves) if f"{leaf.path}.".startswith(begins)]
        stated, count = self._table.metadata.row_group(group), self.groups[group]
        starts = {
            self._start(group, leaves[n].path): (leaves[n], stated.column(n).compression, count)
            for n in used
        }
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

    def watch(self, starts: Mapping[int, tuple[Any, str, int]] | None, at_once: int = 1) -> None:
        """Let pages of columns be read from their places; with None, note one in ``asked``.

        ``large`` then says whether rows were too large to be read ``at_once``.
        """
        self._probed, self.asked, self.large = starts is None, None, False
        budget = _Budget(at_once)
        self._columns = {at: _Pages(at, *found, budget) for at, found in (starts or {}).items()}

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

    def __init__(self, at_once: int) -> None:
        self._at_once, self._held = at_once, dict[tuple[str, bool], int]()
        self._unpacked = self._packed = self._repeated = 0

    def take(self, leaf: Any, page: pages.Page) -> None:
        """Count a page of a column. Raises ValueError."""
        unpacked, packed = page.unpacked, page.packed
        kept = leaf.path, page.is_dictionary  # Arrow keeps room for the largest of both
        self._held[kept] = max(self._held.get(kept, 0), unpacked - PAGE_RATIO * packed)
        self._repeated += page.values if leaf.max_repetition_level else 0
        self._unpacked, self._packed = self._unpacked + unpacked, self._packed + packed
        multiple = GROUP_RATIO * self._packed
        if (
            sum(self._held.values()) > ROOM_BYTES
            or self._unpacked > GROUP_BYTES + multiple
            or self._repeated > MOST_REPEATED + multiple
        ):
            raise ValueError(f"a page of {packed:,} bytes would unpack to {unpacked:,}")
        if leaf.physical_type == "BYTE_ARRAY" and self._at_once > 1:
            # the value of every row may be the largest of a dictionary, or begin as the last one
            one = unpacked if page.repeats else unpacked // max(1, page.values)
            if one > ROWS_BYTES // self._at_once:
                raise _Large("large rows")


class _Pages:
    """The pages of a column: where the next one begins, and how far Arrow has read."""

    def __init__(self, start: int, leaf: Any, compression: str, rows: int, budget: _Budget) -> None:
        self.start = self.next = self.read_to = start
        self._leaf, self._compression, self._budget = leaf, compression, budget
        self._left = rows

    def check(self, file: io.BufferedReader, start: int, block: bytes) -> None:
        """Check the pages that begin in a block, before Arrow has it."""
        self.read_to = stop = start + len(block)
        while self.next < stop:
            data = memoryview(block)[self.next - start :]
            try:
                page, length = pages.header(data)
            except IndexError:  # its header ends behind the block, or never
                data = memoryview(bytes(data) + file.read(MOST_HEADER_BYTES))
                page, length = _header(data)
            self._budget.take(self._leaf, page)
            self._left -= 0 if self._leaf.max_repetition_level else page.values
            if self._left < 0:
                raise ValueError("more values than rows")
            if page.has_deltas:
                packed = bytes(data[length : length + page.packed])
                packed += file.read(page.packed - len(packed))
                page.check_deltas(packed, self._leaf, self._compression)
            file.seek(stop)
            self.next += length + page.packed


def _header(data: memoryview) -> tuple[pages.Page, int]:
    try:
        return pages.header(data)
    except IndexError:
        raise ValueError("the header of a page is cut off or too long") from None
