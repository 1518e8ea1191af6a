"""Tables with an image per row, as a file, a path or an address: Parquet and lines of JSON."""

import base64
import binascii
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
from pyarrow import types
from samclip.cli.parquet import Table
from samclip.cli.places import Unread, open_file
from samclip.files import MAX_FILE_BYTES

from samclip_core import guarded
from services.sources.item import MOST_NAME_BYTES, Columns, Item, Part, SourceError, beside, failed

IMAGE_COLUMNS = ("image", "path", "file", "file_name", "filename", "url", "bytes", "jpg")
"""Columns that are taken for the images' if none is named, the first one that a table has."""
ID_COLUMN = "id"
MOST_METADATA = 256
"""Columns that become metadata: each takes the memory of a page."""
MOST_LINE_BYTES = MAX_FILE_BYTES * 4 // 3 + 2**20
"""A line with the largest image in base64."""
ROWS_AT_ONCE = 256
_SKIPPED_BYTES = 2**20
_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
_BYTES |= {pa.string_view(): pa.binary_view()}
"""Types of texts, as what they are read: nobody has checked that they are UTF-8."""


class NoObject(ValueError):
    """A line that is no JSON object."""


def parquet_parts(path: str, columns: Columns, size: int) -> Iterator[Part]:
    """Yield the parts of a Parquet file. Raises SourceError, OSError."""
    with open_file(path) as file:
        try:
            table = Table(file)
        except Unread:
            raise
        except Exception as error:  # a damaged footer raises errors of any kind
            raise SourceError(f"{path} is not Parquet: {error}") from error
        chosen = _choose(path, table.schema.names, columns)
    before = 0
    for group, count in enumerate(table.groups):
        for start in range(0, count, size):
            at = {"group": group, "start": start, "before": before + start}
            yield {"kind": "rows", "count": min(size, count - start), **chosen, **at}
        before += count


def json_parts(path: str, columns: Columns, size: int) -> Iterator[Part]:
    """Yield the parts of a file with a JSON object per line. Raises SourceError, OSError."""
    chosen = {"path": path, "column": "", "id_column": ""}
    part: Part = {"kind": "lines", "count": 0, "start": 0, "before": 0}
    stop = 0
    with open_file(path) as file:
        for length, line in lines(file, MOST_LINE_BYTES):
            if line and line.strip() and not chosen["column"]:
                with suppress(NoObject):  # it is an image's failure, not that of the table
                    chosen = _choose(path, _json_object(line, path), columns)
            stop, part["count"] = stop + length, part["count"] + 1
            if part["count"] == size:
                yield part | chosen
                part |= {"count": 0, "start": stop, "before": part["before"] + size}
    if part["count"]:
        yield part | chosen


def lines(file: io.BufferedReader, most: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield the length of each line and its bytes; None for one longer than ``most``."""
    while line := file.readline(most + 1):
        length, end = len(line), line[-1:]
        while end != b"\n" and (rest := file.readline(_SKIPPED_BYTES)):
            length, end = length + len(rest), rest[-1:]
        yield length, line if length <= most else None


def _choose(path: str, names: Sequence[str] | Mapping[str, Any], columns: Columns) -> Part:
    """Return the table's path and its columns of images and ids. Raises SourceError."""
    image = columns.image or next((name for name in IMAGE_COLUMNS if name in names), "")
    id = columns.id or (ID_COLUMN if ID_COLUMN in names else "")
    for column in (image, id):
        if column and column not in names:
            raise SourceError(f"{path} has no column {column!r}, but {', '.join(names)}")
    if not image:
        raise SourceError(
            f"{path} has the columns {', '.join(names)}: name the one with paths or bytes of "
            "images with --column"
        )
    return {"path": path, "column": image, "id_column": id}


def parquet_rows(part: Part) -> Iterator[Item]:
    """Yield the images of a part of a Parquet file. Raises ValueError, OSError."""
    first, last, place = part["start"], part["start"] + part["count"], 0
    with open_file(part["path"]) as file:
        table = Table(file)
        names, metadata = _used(table.schema, part)
        for batch in table.batches([part["group"]], [*names, *metadata], ROWS_AT_ONCE):
            for at in range(max(first, place), min(last, place + len(batch))):
                yield _of_batch(part, metadata, batch, at - place, part["before"] + at - first)
            place += len(batch)
            if place >= last:
                return
    raise ValueError(f"row group {part['group']} ends after {place} rows")


def json_rows(part: Part) -> Iterator[Item]:
    """Yield the images of a part of a file with a JSON object per line. Raises OSError."""
    with open_file(part["path"]) as file:
        file.seek(part["start"])
        found = islice(lines(file, MOST_LINE_BYTES), part["count"])
        for place, (_, line) in enumerate(found, part["before"]):
            if line is None or line.strip():
                yield _item(part, place, partial(_of_line, part, line, place))


Cells = tuple[Any, Any, dict[str, Any]]
"""The cell of the image, that of the id, and the others that become metadata."""


def _of_line(part: Part, line: bytes | None, place: int) -> Cells:
    if line is None:
        raise ValueError(f"a line longer than {MOST_LINE_BYTES // 2**20} MiB")
    row = _json_object(line, f"{part['path']}#{place}")
    image = row.pop(part["column"], None)
    id = row.pop(part["id_column"], None) if part["id_column"] else None
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    return image, id, row


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object of a line. Raises NoObject."""
    try:
        text = line.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
        found = guarded.parsed(text)
    except ValueError as error:
        raise NoObject(f"{where}: not a line of JSON: {error}") from error
    if not isinstance(found, dict):
        raise NoObject(f"{where}: {type(found).__name__}, expected a JSON object per line")
    return found


def _used(schema: pa.Schema, part: Part) -> tuple[list[str], list[str]]:
    """Return the columns of the image and the id, and those that become metadata."""
    image, id = part["column"], part["id_column"]
    kind = schema.field(image).type
    names = [id] if id else []
    if types.is_struct(kind):
        names += [
            f"{image}.{each}" for each in ("bytes", "path") if kind.get_field_index(each) >= 0
        ]
    else:
        names.append(image)
    once = [field for field in schema if schema.get_field_index(field.name) >= 0]
    others = [field.name for field in once if _is_scalar(field.type)]
    return names, [name for name in others if name not in (image, id)][:MOST_METADATA]


def _is_scalar(kind: pa.DataType) -> bool:
    if types.is_dictionary(kind):
        return kind.value_type in _BYTES
    is_number = types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind)
    return is_number or kind in _BYTES


def _of_batch(
    part: Part, metadata: Sequence[str], batch: pa.RecordBatch, at: int, place: int
) -> Item:
    def cells() -> Cells:
        image, id = batch.column(part["column"]), part["id_column"]
        if types.is_struct(image.type):
            fields = [image.type.field(n).name for n in range(image.type.num_fields)]
            found = [_cell(image.field(name), at) for name in sorted(fields)]  # bytes before path
            value = next(filter(None, found), None)
        else:
            value = _cell(image, at)
        others = {name: _cell(batch.column(name), at) for name in metadata}
        return value, _cell(batch.column(id), at) if id else None, others

    return _item(part, place, cells)


def _cell(column: pa.Array, at: int) -> Any:
    """Return a value of a column; a text with surrogates for bytes that are no UTF-8."""
    cell = column[at : at + 1]
    if types.is_dictionary(cell.type):
        cell = cell.dictionary_decode()
    if cell.type not in _BYTES:
        return cell[0].as_py()
    encoded = cell.cast(_BYTES[cell.type])[0].as_py()
    return None if encoded is None else encoded.decode("utf-8", "surrogateescape")


def _item(part: Part, place: int, cells: Callable[[], Cells]) -> Item:
    """Return the image of a row: bytes, a path, a data URL, or a struct as of Hugging Face."""
    here = f"{part['path']}#{place}"
    try:
        value, id, others = cells()
        if id is None:
            id = value if isinstance(value, str) and not value.startswith("data:") else here
        id = str(id)
        if len(id) > MOST_NAME_BYTES:
            raise ValueError(f"an id of {len(id):,} characters")
        found = {name: _text(each) for name, each in others.items() if isinstance(each, _SCALARS)}
    except Exception as error:  # a cell may hold anything
        return failed(here, here, error)
    try:
        if isinstance(value, bytes):
            return Item(id, here, value, metadata=found)
        if not isinstance(value, str) or not value:
            raise ValueError(f"the column {part['column']!r} has no path and no bytes")
        if not value.startswith("data:"):
            return Item(id, beside(part["path"], value), metadata=found)
        encoded = base64.b64decode(value.partition(",")[2], validate=True)
        return Item(id, here, encoded, metadata=found)
    except binascii.Error as error:
        return Item(id, here, problem=f"the data URL is damaged: {error}", metadata=found)
    except ValueError as error:
        return Item(id, here, problem=str(error), metadata=found)


_SCALARS = (str, int, float, bool)


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else json.dumps(value)
