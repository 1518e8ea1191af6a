"""``samclip backup``: write all collections, or chosen versions of some, to one file.

The file is gzip'd JSON lines: a header; for each collection its description, then its items, each
with its vector and its objects; and a last line with their number, which a file that was cut off
does not have.
"""

import base64
import gzip
import json
import os
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from samclip.cli.usage import Parser
from tqdm import tqdm

from samclip_core.errors import InvalidRequest, NotFound, SamClipError, Unavailable
from samclip_core.io.files import replacing
from services.retrieval import engine
from services.retrieval.checks import check_dtype, no_collection
from services.retrieval.collection import Collection
from services.retrieval.index import Collections, Description
from services.retrieval.rows import to_bytes
from services.settings import Settings, SettingsError

HEADER = {"samclip_backup": 1}
LONGEST = 16 * 1024**2
"""Bytes of a line that ``samclip restore`` reads."""

Line = dict[str, Any]
Chosen = Mapping[str, int | None]
"""Versions by the stored names of collections; None: as it is."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if the file has all collections."""
    args = parser().parse_args(argv)
    chosen = dict(args.collections)
    try:
        if len(chosen) < len(args.collections):
            raise InvalidRequest("a collection is named twice: write a file for each version")
        with opened() as index, _writable(args.file) as output:
            count = write(index, output, chosen)
    except (SamClipError, SettingsError, OSError) as error:
        print(f"samclip backup: {error}", file=sys.stderr)
        return 1
    print(f"{count} items", file=sys.stderr)
    return 0


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser(
        prog="samclip backup",
        description="Write all collections of the index in the settings (SAMCLIP_INDEX_DIR) to a "
        "file, each as it is at one moment, or some of them, as they are or were in a version of "
        "the last ten minutes. The service may go on.",
        examples=[
            "samclip backup collections.backup",
            "samclip backup pets.backup pets=12 ann@cars",
            "docker compose exec -T samclip samclip backup - > collections.backup",
        ],
    )
    made.add_argument("file", metavar="FILE", help="file to write; -: standard output")
    made.add_argument(
        "collections",
        metavar="NAME[=VERSION]",
        nargs="*",
        type=_chosen,
        help="collections (all), and their versions as samclip describe shows them (the newest)",
    )
    return made


def _chosen(text: str) -> tuple[str, int | None]:
    name, named, version = text.partition("=")
    if named and not version.isdecimal():
        raise ArgumentTypeError(f"{text!r}: expected NAME, or NAME=VERSION with a number")
    return name, int(version) if named else None


@contextmanager
def opened() -> Iterator[Collections]:
    """Open the index in the settings. Raises Unavailable or SettingsError."""
    # Neither command computes vectors, so no model is loaded.
    yield Collections(engine.open_index(Settings.load(None)), digest="", dimension=0)


@contextmanager
def _writable(name: str) -> Iterator[BinaryIO]:
    """Open a new file of this user alone, which has its name only once it is complete."""
    if name == "-":
        yield sys.stdout.buffer
        return
    with replacing(Path(name), 0o600) as partial, partial.open("wb") as output:
        yield output
        output.flush()
        os.fsync(output.fileno())


def write(index: Collections, output: BinaryIO, chosen: Chosen | None = None) -> int:
    """Write a backup of all or chosen collections; return the number of their items.

    Raises Unavailable if the index fails, or a collection is made again with another model,
    NotFound for a chosen one that is not there, and InvalidRequest for a version that is not, and
    for an item that ``samclip restore`` would not read.
    """
    count, name = 0, ""
    with gzip.open(output, "wb", compresslevel=1) as file:
        for line in _lines(index, chosen):
            count += "id" in line
            name = line.get("collection", {}).get("name", name)
            written = _written(line)
            if len(written) > LONGEST:
                raise InvalidRequest(
                    f"item {line.get('id')!r} of collection {name!r} has {len(written):,} bytes in "
                    f"a backup, and samclip restore reads {LONGEST:,}: delete it, or index its "
                    "image again"
                )
            file.write(written)
        file.write(_written({"items": count}))
    return count


def _written(line: Line) -> bytes:
    return f"{json.dumps(line, ensure_ascii=False)}\n".encode()


def _lines(index: Collections, chosen: Chosen | None = None) -> Iterator[Line]:
    yield HEADER
    names = index.registry.names()
    if chosen:
        if unknown := chosen.keys() - {*names}:
            raise no_collection(min(unknown))
        names = sorted(chosen)
    descriptions = [*filter(None, map(index.described, names))]
    total = sum(description.count for description in descriptions)
    with tqdm(total=total, unit="item", disable=not sys.stderr.isatty()) as progress:
        for description in descriptions:
            yield {"collection": asdict(description)}
            for item in _items(index, description, (chosen or {}).get(description.name)):
                yield item
                progress.update()


def _items(index: Collections, description: Description, version: int | None) -> Iterator[Line]:
    """Yield the items of the collection that was described, unless it is deleted meanwhile.

    Raises Unavailable if it is also made again with another model or precision.
    """
    described = index.of_model(description.digest, description.dimension)
    ours, name = described.of_owner(description.name)

    def found() -> Collection:
        collection = ours.get(name)
        check_dtype(name, collection.dtype, description.dtype)
        return collection

    with suppress(NotFound):
        if version is not None:
            found().check_version(version)
        try:
            yield from _lines_of(found, version)
        except InvalidRequest as error:
            raise Unavailable(
                f"collection {description.name!r} was deleted and made again with another model "
                "or precision during the backup: run samclip backup again"
            ) from error


def _lines_of(found: Callable[[], Collection], version: int | None) -> Iterator[Line]:
    try:
        collection = found()
        with collection.snapshot(version) as snapshot:
            for item in collection.stored(snapshot):
                encoded = base64.b64encode(to_bytes(item.vector_D)).decode()
                line = {"id": item.id, "metadata": dict(item.metadata), "vector": encoded}
                if item.objects:
                    line["objects"] = base64.b64encode(item.objects).decode()
                yield line
    except Unavailable:
        found()  # else it was deleted meanwhile, or made again
        raise
