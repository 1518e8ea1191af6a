"""The images of sources: folders, files, patterns, lists, tables and shards.

Sources are split into parts of consecutive images, each of which can be read by itself. A part
is plain JSON: ``files`` are listed in it, ``rows`` of a Parquet file and ``lines`` of a JSON Lines
file are a range, and a ``shard`` is a whole tar.
"""

import glob
import os
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from fsspec.implementations.local import LocalFileSystem
from samclip.cli.places import WEB, open_file, protocol, system_of, url_of
from samclip.images import OTHERS, SUFFIXES

from services.sources.item import (
    MOST_NAME_BYTES,
    Columns,
    Item,
    Part,
    SourceError,
    beside,
    failed,
    state,
)
from services.sources.shards import shard_images
from services.sources.tables import json_parts, json_rows, lines, parquet_parts, parquet_rows

SHARDS = (".tar", ".tar.gz", ".tgz")
TABLES = {".parquet": parquet_parts, ".jsonl": json_parts, ".ndjson": json_parts}
LISTS = (*TABLES, ".txt")
_READERS = {"rows": parquet_rows, "lines": json_rows, "shard": shard_images}


class _File(NamedTuple):
    id: str
    path: str
    problem: str = ""
    in_list: bool = False


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
            yield {"kind": "files", "count": len(held), "files": [file[:3] for file in held]}
            held = []
        yield from ranges or ()
    if held:
        yield {"kind": "files", "count": len(held), "files": [file[:3] for file in held]}


def items(part: Part) -> Iterator[Item]:
    """Yield the images of a part, in order.

    Raises no error: if a table or shard cannot be read to its end, the last item says so.
    """
    if part["kind"] == "files":
        yield from (Item(id, path, problem=problem) for id, path, problem in part["files"])
        return
    try:
        yield from _READERS[part["kind"]](part)
    except Exception as error:  # damaged content raises errors of any kind
        what = "shard" if part["kind"] == "shard" else "table"
        found = failed(str(part.get("id") or part["path"]), part["path"], error)
        yield found._replace(problem=f"the {what} cannot be read to its end: {found.problem}")


def _source(given: str) -> _Source:
    """Find out what a source is. Raises SourceError."""
    try:
        system, path = system_of(given)
    except (ValueError, ImportError) as error:
        raise SourceError(f"{given}: {error}") from error
    web = protocol(given) in WEB
    kind, folder = "file", path
    if not web and system.isdir(path):
        kind = "folder"
    elif not web and glob.has_magic(path) and not system.exists(path):
        kind, folder = "pattern", path[: _pattern_at(path)]
    url = url_of(system, folder)
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
        url = url_of(system, each)
        if suffix == ".txt":
            yield from _listed(url)
        elif suffix in OTHERS:
            yield _File(id, url, f"not read: convert it to {', '.join(sorted(SUFFIXES))}")
        else:
            yield _File(id, url)
        found = True
    if not found:
        expected = ", ".join([*sorted(SUFFIXES), *SHARDS, *LISTS])
        raise SourceError(f"{given}: no images found: expected {expected}")


def _pattern_at(path: str) -> int:
    return min((path.find(mark) for mark in "*?[" if mark in path), default=len(path))


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
    elif protocol(source.given) in WEB or system.exists(path):
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


def _listed(url: str) -> Iterator[_File]:
    """Yield the images of a text file with a path or address per line."""
    with open_file(url) as file:
        for number, (_, line) in enumerate(lines(file, MOST_NAME_BYTES)):
            path = f"{url}#{number}"
            if line is not None:  # Windows begins a text with a mark
                path = os.fsdecode(line.removeprefix(BOM_UTF8 if number == 0 else b"").strip())
            if line is None:
                yield _File(path, path, f"a line longer than {MOST_NAME_BYTES // 2**10} KiB")
            elif path:
                try:
                    yield _File(path, beside(url, path), in_list=True)
                except ValueError as error:
                    yield _File(path, url, str(error))


def _ranges(file: _File, columns: Columns, size: int) -> Iterator[Part] | None:
    """Return the parts of a table or shard; None for an image.

    A table that cannot be used ends the listing if the operator has named it, not in a list.
    """
    name = file.path.lower()
    if name.endswith(SHARDS):
        return iter([{"kind": "shard", "count": None, "path": file.path, "id": file.id}])
    table = next((suffix for suffix in TABLES if name.endswith(suffix)), "")
    if not table:
        return None
    ranges = _with_state(file.path, TABLES[table](file.path, columns, size))
    return _or_problem(file, ranges) if file.in_list else ranges


def _or_problem(file: _File, ranges: Iterator[Part]) -> Iterator[Part]:
    try:
        yield from ranges
    except ValueError as error:
        yield {"kind": "files", "count": 1, "files": [(file.id, file.path, str(error))]}


def _with_state(path: str, ranges: Iterator[Part]) -> Iterator[Part]:
    """Yield the ranges of a table with its state, which another version of it does not have."""
    found = state(path)
    yield from ({**part, "state": found} for part in ranges)
