"""Read the images of one part of the sources of a batch."""

import base64
import binascii
import json
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Self, TypeVar

import pyarrow.parquet as pq
from samclip.download import MAX_FILE_BYTES, download
from samclip.images import SUFFIXES

from services.lake.sources import Part, SourceError, beside, json_object, open_file, place_of

ROWS_AT_ONCE = 16
TRIES, WAIT_S = 3, 1.0
T = TypeVar("T")


class Item(NamedTuple):
    """One image: its file if it has been read, or a problem instead."""

    id: str
    source: str
    encoded: bytes | None = None
    problem: str = ""
    metadata: Mapping[str, str] = {}

    def read(self) -> bytes:
        """Return the file. Raises OSError or ValueError if it cannot be had."""
        if self.problem:
            raise ValueError(self.problem)
        return read_file(self.source) if self.encoded is None else self.encoded


def items(part: Part) -> Iterator[Item]:
    """Yield the images of a part, in order. Raises OSError if its table or shard is gone."""
    yield from _READERS[part["kind"]](part)


def _from_files(part: Part) -> Iterator[Item]:
    for id, path, problem in part["files"]:
        yield Item(id, path, None, problem)


def _from_rows(part: Part) -> Iterator[Item]:
    start, last, place = part["start"], part["start"] + part["count"], 0
    with open_file(part["path"]) as file:
        for batch in pq.ParquetFile(file).iter_batches(ROWS_AT_ONCE, [part["group"]]):
            if place + len(batch) > start:
                for at, row in enumerate(batch.to_pylist(), place):
                    if start <= at < last:
                        yield _of_row(part, row, part["before"] + at - start)
            place += len(batch)
            if place >= last:
                return


def _from_lines(part: Part) -> Iterator[Item]:
    system, path = place_of(part["path"])
    lines = system.cat_file(path, part["start"], part["stop"]).split(b"\n")
    for place, line in enumerate(lines, part["before"]):
        here = f"{part['path']}#{place}"
        try:
            if line.strip():
                yield _of_row(part, json_object(line, here), place)
        except SourceError as error:
            yield Item(here, here, problem=str(error))


def _of_row(part: Part, row: dict[str, Any], place: int) -> Item:
    """Return the image of a row: bytes, a path, a data URL, or a struct as of Hugging Face."""
    value, here = row.pop(part["column"], None), f"{part['path']}#{place}"
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    id = row.pop(part["id_column"], None) if part["id_column"] else None
    if id is None:
        id = value if isinstance(value, str) and not value.startswith("data:") else here
    metadata = {name: _text(each) for name, each in row.items() if isinstance(each, _SCALARS)}
    if isinstance(value, bytes):
        return Item(str(id), here, value, "", metadata)
    if not isinstance(value, str) or not value:
        problem = f"the column {part['column']!r} has no path and no bytes"
        return Item(str(id), here, None, problem, metadata)
    if not value.startswith("data:"):
        return Item(str(id), beside(part["path"], value), None, "", metadata)
    try:
        encoded = base64.b64decode(value.partition(",")[2], validate=True)
    except binascii.Error as error:
        return Item(str(id), here, None, f"the data URL is damaged: {error}", metadata)
    return Item(str(id), here, encoded, "", metadata)


_SCALARS = (str, int, float, bool)


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class _Member(tarfile.TarInfo):
    """A member of a tar; only the mark at the end ends the tar, not a header that is damaged."""

    @classmethod
    def fromtarfile(cls, shard: tarfile.TarFile) -> Self:
        """Read the next header. Raises ReadError, where tarfile would stop silently."""
        try:
            return super().fromtarfile(shard)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


def _from_shard(part: Part) -> Iterator[Item]:
    """Yield the images of a tar as it is read, without extracting it."""
    names: set[str] = set()
    try:
        with (
            open_file(part["path"]) as file,
            tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member) as shard,
        ):
            for member in shard:
                if member.name.lower().endswith(tuple(SUFFIXES)):
                    yield _of_member(part, shard, member, names)
    except tarfile.TarError as error:
        problem = f"the shard cannot be read to its end: {error}"
        yield Item(part["id"], part["path"], None, problem)


def _of_member(
    part: Part, shard: tarfile.TarFile, member: tarfile.TarInfo, names: set[str]
) -> Item:
    id, source = f"{part['id']}/{member.name}", f"{part['path']}/{member.name}"
    if not member.isfile():
        return Item(id, source, None, "a folder or link, expected a file: replace it in the shard")
    if member.name in names:
        problem = "the shard has two images of this name: the first was used, rename one"
        return Item(id, source, None, problem)
    names.add(member.name)
    if member.size > MAX_FILE_BYTES:
        return Item(id, source, None, _TOO_LARGE)
    content = shard.extractfile(member)
    return Item(id, source, content.read() if content else b"")


_TOO_LARGE = f"a file larger than {MAX_FILE_BYTES // 2**20} MiB"
_READERS = {"files": _from_files, "rows": _from_rows, "lines": _from_lines, "shard": _from_shard}


def read_file(path: str) -> bytes:
    """Return a file of up to MAX_FILE_BYTES. Raises OSError, after several tries, or ValueError."""
    return patiently(lambda: _read(path))


def patiently(function: Callable[[], T]) -> T:
    """Call a function again when the disk or the network fails. Raises the last error."""
    for attempt in range(1, TRIES):
        try:
            return function()
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            raise
        except OSError:
            time.sleep(WAIT_S * 2**attempt)
    return function()


def _read(path: str) -> bytes:
    if path.startswith(("http://", "https://")):
        return download(path)
    with open_file(path) as file:
        content: bytes = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(_TOO_LARGE)
    return content
