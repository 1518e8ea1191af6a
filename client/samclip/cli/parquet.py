"""Parquet files from anybody: a child process reads their rows, within limits.

A page states its size, and Arrow's reader believes it: a few kB may state gigabytes, and some
damage ends the process that reads. The child runs this file as a program. It asks its parent, which
alone opens the Parquet file, for parts of it, and sends back batches of rows. The parent reads the
footer.
"""

import io
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread, Timer
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MEMORY_BYTES = 2**31
"""Memory of the child, beside that of its libraries. The largest pages are DuckDB's, one per row
group: some 30 MB for a column of sentences."""
LOOK_S = 0.01
"""Interval of looks at the memory that Arrow has, where the system limits none."""
WAIT_S = 60.0
"""Longest time for some rows, besides that of reading the file."""
TABLE_BYTES, TABLE_RATIO = 2**30, 64
"""The rows of a file may unpack to TABLE_BYTES, and to TABLE_RATIO times its own bytes more."""
ROWS_BYTES = 64 * 2**20
"""Rows at once: above it, each is sent singly."""
MOST_FOOTER_BYTES = 8 * 2**20
"""The footer takes some 200 times its bytes in memory."""
MOST_ROWS_PER_BYTE = 8
BUFFER_BYTES = 2**20
TOO_LARGE = "its rows need too much memory, or are damaged"
_READ, _ROWS, _LARGE, _FAILED, _END = range(5)
_FRAME = struct.Struct("<BQQ")
"""The head of a message of the process: its kind, a place in the file, a number of bytes."""


class Table:
    """A Parquet file: its ``schema`` (Arrow's), ``metadata``, and the rows of its row groups."""

    def __init__(self, file: io.BufferedReader) -> None:
        """Read the footer. Raises ValueError for a file that is not Parquet, OSError."""
        self._file, self._size = file, file.seek(0, io.SEEK_END)
        file.seek(max(0, self._size - 8))
        tail = file.read(8)
        footer = int.from_bytes(tail[:4], "little")
        if tail[4:] != b"PAR1" or footer > min(self._size, MOST_FOOTER_BYTES):
            raise ValueError(f"no Parquet with a footer of up to {MOST_FOOTER_BYTES // 2**20} MiB")
        table = pq.ParquetFile(file)
        self.schema = table.schema_arrow
        stated = table.metadata
        self.metadata: Mapping[bytes, bytes] = stated.metadata or {}
        self.groups = [stated.row_group(group).num_rows for group in range(stated.num_row_groups)]
        if min(self.groups, default=0) < 0 or sum(self.groups) > MOST_ROWS_PER_BYTE * self._size:
            raise ValueError(f"{sum(self.groups):,} rows, too many for {self._size:,} bytes")

    def batches(
        self, groups: Sequence[int], names: Sequence[str], most: int
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of columns of row groups, ``most`` at once, or singly if they are large.

        Raises ValueError if they are damaged, take too much memory or too long.
        """
        left = sum(self.groups[group] for group in groups)
        room = TABLE_BYTES + TABLE_RATIO * self._size
        done, at_once = 0, most
        while True:
            asked = {"groups": [*groups], "names": [*names], "most": at_once, "skip": done}
            try:
                for batch in self._read(asked):
                    left, room, done = left - len(batch), room - batch.nbytes, done + len(batch)
                    if left < 0:
                        raise ValueError("more values than rows")
                    if room < 0:
                        raise ValueError(f"the rows would unpack to over {TABLE_BYTES:,} bytes")
                    yield batch
                return
            except MemoryError as error:
                if at_once == 1:
                    raise ValueError(str(error)) from None
                at_once = 1

    def _read(self, asked: Mapping[str, Any]) -> Iterator[pa.RecordBatch]:
        """Yield what a new process reads. Raises MemoryError if it ends without an answer."""
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        command = [sys.executable, "-P", __file__]
        child: Any
        with subprocess.Popen(command, **pipes, stderr=subprocess.DEVNULL) as child:
            limits = {"size": self._size, "memory": MEMORY_BYTES, "rows_bytes": ROWS_BYTES}
            send = partial(_send, child)
            send(json.dumps({**asked, **limits}).encode() + b"\n")
            try:
                while (message := _message(child))[0] != _END:
                    kind, place, size, content = message
                    if kind == _READ:
                        self._file.seek(place)
                        send(self._file.read(size))
                    elif kind == _ROWS:
                        yield from pa.ipc.open_stream(content)
                    elif kind == _LARGE:
                        raise MemoryError(TOO_LARGE)
                    else:
                        raise ValueError(content.decode(errors="replace"))
            finally:
                child.kill()
                with suppress(BrokenPipeError):
                    child.stdin.close()


def _send(child: Any, content: bytes) -> None:
    with suppress(BrokenPipeError):  # it has ended, which the next message says
        child.stdin.write(content)
        child.stdin.flush()


def _message(child: Any) -> tuple[int, int, int, bytes]:
    """Return the next message of the process: its kind, a place in the file, a size, its content.

    Raises ValueError if there is none in time, MemoryError if the process has ended.
    """
    late = Event()

    def stop() -> None:
        late.set()
        child.kill()

    timer = Timer(WAIT_S, stop)
    timer.start()
    try:
        head = child.stdout.read(_FRAME.size)
        if len(head) == _FRAME.size:
            kind, place, size = _FRAME.unpack(head)
            content = b"" if kind == _READ else child.stdout.read(size)
            if kind == _READ or len(content) == size:
                return kind, place, size, content
    finally:
        timer.cancel()
    raise ValueError(f"no rows within {WAIT_S:g} s") if late.is_set() else MemoryError(TOO_LARGE)


# ------------------------------------------------------------- the process


class _File(io.RawIOBase):
    """The Parquet file, of which the other process sends what is asked for."""

    def __init__(self, size: int) -> None:
        self._size, self._at = size, 0

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self._at)
        wanted = left if size is None or size < 0 else min(size, left)
        _say(_READ, place=self._at, size=wanted)
        block = sys.stdin.buffer.read(wanted)
        self._at += len(block)
        return block

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _say(kind: int, content: bytes = b"", place: int = 0, size: int = 0) -> None:
    sys.stdout.buffer.write(_FRAME.pack(kind, place, size or len(content)) + content)
    sys.stdout.buffer.flush()


def _limit(memory: int) -> None:
    """Limit the memory of this process to ``memory`` more; on macOS and Windows, end it then."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        return

    def watch() -> None:
        while pa.system_memory_pool().bytes_allocated() <= memory:
            time.sleep(LOOK_S)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _rows(asked: Mapping[str, Any]) -> Iterator[pa.RecordBatch]:
    """Yield the rows that are asked for, without those to skip; large ones are single."""
    table = pq.ParquetFile(_File(asked["size"]), buffer_size=BUFFER_BYTES, pre_buffer=False)
    skip, most = asked["skip"], asked["most"]
    for batch in table.iter_batches(most, asked["groups"], asked["names"], use_threads=False):
        new = batch.slice(skip)
        skip = max(0, skip - len(batch))
        if new.nbytes <= asked["rows_bytes"]:
            yield new
        else:
            yield from (new.slice(n, 1) for n in range(len(new)))


def _answer() -> None:
    """Send the rows that the first line of stdin asks for."""
    asked = json.loads(sys.stdin.buffer.readline())
    pa.set_memory_pool(pa.system_memory_pool())  # others reserve addresses, which are limited
    _limit(asked["memory"])
    try:
        for batch in _rows(asked):
            sink = io.BytesIO()
            with pa.ipc.new_stream(sink, batch.schema) as stream:
                stream.write_batch(batch)
            _say(_ROWS, sink.getvalue())
        _say(_END)
    except MemoryError:
        _say(_LARGE)
    except Exception as error:
        _say(_FAILED, str(error).encode(errors="replace")[:1000])


if __name__ == "__main__":
    _answer()
