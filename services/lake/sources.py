"""The sources of a batch: images in folders, lists, tables and shards, on a disk or at a URL.

Sources are split into parts of consecutive images, each of which can be read by itself
(``services.lake.reading``). A part is plain JSON: ``files`` are listed in it, ``rows`` of a Parquet
file and ``lines`` of a JSON Lines file are a range, and a ``shard`` is a whole tar.
"""

import glob
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, takewhile
from typing import IO, Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from samclip.images import OTHERS, SUFFIXES

IMAGE_COLUMNS = ("image", "path", "file", "file_name", "filename", "url", "bytes", "jpg")
"""Columns that are taken for the images' if none is named, the first one that a table has."""
ID_COLUMN = "id"
SHARDS = (".tar", ".tar.gz", ".tgz")
LISTS = (".parquet", ".jsonl", ".ndjson", ".txt")
Part = dict[str, Any]


class SourceError(ValueError):
    """A source that does not exist, has no images, or lacks a column."""


class Columns(NamedTuple):
    """The columns of tables with the images and their ids; empty: those with the usual names."""

    image: str = ""
    id: str = ""


class _File(NamedTuple):
    id: str
    path: str
    problem: str = ""


class _Source(NamedTuple):
    """A source as it was given; ``kind`` is "folder", "file" or "pattern".

    ``above`` has the scheme and the folders that the names of its images are relative to.
    """

    given: str
    system: Any
    path: str
    kind: str
    above: tuple[str, ...]


def parts(sources: Sequence[str], columns: Columns, size: int) -> Iterator[Part]:
    """Yield the parts of the sources, of up to ``size`` images, in a fixed order.

    The ids of files are their paths below the folder that all sources have in common, be it a
    bucket's or a disk's root. Memory depends on the number of sources and on that of files in one
    folder, not on that of all images. Raises SourceError.
    """
    held: list[_File] = []
    found = [_source(given) for given in sources]
    levels = zip(*(source.above for source in found), strict=False)
    shared = len([*takewhile(lambda folders: len({*folders}) == 1, levels)])
    for file in (file for source in found for file in _files(source, shared)):
        ranges = _ranges(file, columns, size)
        if ranges is None:
            held.append(file)
        if held and (ranges is not None or len(held) == size):
            yield {"kind": "files", "count": len(held), "files": held}
            held = []
        yield from ranges or ()
    if held:
        yield {"kind": "files", "count": len(held), "files": held}


def _source(given: str) -> _Source:
    """Find out what a source is. Raises SourceError."""
    system, path = place_of(given)
    web = given.startswith(("http://", "https://"))
    kind, folder = "file", path
    if not web and system.isdir(path):
        kind = "folder"
    elif not web and glob.has_magic(path) and not system.exists(path):
        kind, folder = "pattern", path[: _pattern_at(path)]
    url = _url(system, folder)
    scheme, _, below = url.partition("://") if "://" in url else ("", "", url)
    if kind != "folder":
        below = (below.rstrip("/") if kind == "file" else below).rpartition("/")[0]
    return _Source(given, system, path, kind, (scheme, *filter(None, below.split("/"))))


def _files(source: _Source, shared: int) -> Iterator[_File]:
    """Yield the images, tables and shards of a source, those of a list included.

    Their ids begin with the folders above them, but for the first ``shared`` and the scheme.
    """
    given, system, path = source.given, source.system, source.path
    prefix = "".join(f"{folder}/" for folder in source.above[max(shared, 1) :])
    found = False
    for name, each in _below(system, path) if source.kind == "folder" else _named(source):
        id = prefix + name
        suffix = os.path.splitext(each)[1].lower()
        url = _url(system, each)
        if suffix == ".txt":
            yield from _listed(url)
        elif suffix in OTHERS:
            yield _File(id, url, f"not read: convert it to {', '.join(sorted(SUFFIXES))}")
        else:
            yield _File(id, url)
        found = True
    if not found:
        raise SourceError(f"{given}: no images found: expected {_expected()}")


def _pattern_at(path: str) -> int:
    return min((path.find(mark) for mark in "*?[" if mark in path), default=len(path))


def place_of(given: str) -> tuple[Any, str]:
    """Return the file system and the path of a file or folder. Raises SourceError."""
    if "://" not in given:
        return LocalFileSystem(), os.path.abspath(given)
    try:
        system, path = fsspec.url_to_fs(given)
    except (ValueError, ImportError) as error:
        raise SourceError(f"{given}: {error}") from error
    return system, path


def open_file(path: str) -> IO[bytes]:
    """Open a file on a disk or at a URL for reading."""
    if "://" not in path:
        return open(path, "rb")
    system, name = place_of(path)
    file: IO[bytes] = system.open(name, "rb")
    return file


def _expected() -> str:
    return ", ".join([*sorted(SUFFIXES), *SHARDS, *LISTS])


def _named(source: _Source) -> Iterator[tuple[str, str]]:
    """Yield (name, path) of the file, or of those that match the pattern."""
    system, path = source.system, source.path
    if source.kind == "pattern":
        folder = path[: _pattern_at(path)].rpartition("/")[0]
        for each in sorted(system.glob(path)):
            name = each.removeprefix(f"{folder}/")
            hidden = any(part.startswith(".") for part in name.split("/"))
            if not hidden and not system.isdir(each):
                yield name, each
    elif source.given.startswith(("http://", "https://")) or system.exists(path):
        yield path.rstrip("/").rpartition("/")[2], path
    else:
        raise SourceError(f"{source.given}: there is no such file or folder")


def _below(system: Any, folder: str, at: str = "") -> Iterator[tuple[str, str]]:
    """Yield (relative path, path) of each image and shard below a folder, hidden ones left out."""
    folder = folder.rstrip("/")
    for name, is_folder in _entries(system, folder):
        if name.startswith("."):
            continue
        if is_folder:
            yield from _below(system, f"{folder}/{name}", f"{at}{name}/")
        elif name.lower().endswith((*SUFFIXES, *OTHERS, *SHARDS)):
            yield f"{at}{name}", f"{folder}/{name}"


def _entries(system: Any, folder: str) -> list[tuple[str, bool]]:
    """Return the sorted names in a folder, and whether each is a folder, without keeping more."""
    if isinstance(system, LocalFileSystem):
        with os.scandir(folder) as entries:
            return sorted((each.name, each.is_dir(follow_symlinks=False)) for each in entries)
    listed = system.ls(folder, detail=True)
    names = ((each["name"].rstrip("/"), each["type"] == "directory") for each in listed)
    found = sorted((name.rpartition("/")[2], kind) for name, kind in names if name != folder)
    system.invalidate_cache()
    return found


def _url(system: Any, path: str) -> str:
    return path if isinstance(system, LocalFileSystem) else str(system.unstrip_protocol(path))


def beside(table: str, path: str) -> str:
    """Return the place of a path that a table or list names, by default in its own folder."""
    return path if "://" in path or path.startswith("/") else f"{table.rpartition('/')[0]}/{path}"


def _listed(url: str) -> Iterator[_File]:
    """Yield the images of a text file with a path or address per line."""
    with open_file(url) as file:
        for line in file:
            if path := os.fsdecode(line.strip()):
                yield _File(path, beside(url, path))


def _ranges(file: _File, columns: Columns, size: int) -> Iterator[Part] | None:
    """Return the parts of a table or shard; None for an image."""
    name = file.path.lower()
    if name.endswith(SHARDS):
        return iter([{"kind": "shard", "count": None, "path": file.path, "id": file.id}])
    if name.endswith(".parquet"):
        return _rows(file, columns, size)
    if name.endswith((".jsonl", ".ndjson")):
        return _lines(file, columns, size)
    return None


def _rows(file: _File, columns: Columns, size: int) -> Iterator[Part]:
    with open_file(file.path) as opened:
        try:
            table = pq.ParquetFile(opened)
        except pa.ArrowInvalid as error:
            raise SourceError(f"{file.path} is not Parquet: {error}") from error
        chosen = _choose(file.path, table.schema_arrow.names, columns)
        counts = [table.metadata.row_group(g).num_rows for g in range(table.num_row_groups)]
    for group, count in enumerate(counts):
        for start in range(0, count, size):
            at = {"group": group, "start": start, "before": sum(counts[:group]) + start}
            yield {"kind": "rows", "count": min(size, count - start), **chosen, **at}


def _lines(file: _File, columns: Columns, size: int) -> Iterator[Part]:
    with open_file(file.path) as opened:
        start, before, chosen = 0, 0, {"path": file.path, "column": "", "id_column": ""}
        while lines := [*islice(opened, size)]:
            first = next((line for line in lines if line.strip()), b"")
            if first and not chosen["column"]:
                chosen = _choose(file.path, json_object(first, file.path), columns)
            at = {"start": start, "stop": start + sum(map(len, lines)), "before": before}
            yield {"kind": "lines", "count": len(lines), **chosen, **at}
            start, before = at["stop"], before + len(lines)


def json_object(line: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object of a line. Raises SourceError."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where}: not a line of JSON: {error}") from error
    if not isinstance(found, dict):
        raise SourceError(f"{where}: {type(found).__name__}, expected a JSON object per line")
    return found


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
