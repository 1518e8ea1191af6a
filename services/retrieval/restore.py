"""``samclip restore``: add the collections of a backup to the index, whichever engine it has."""

import base64
import gzip
import json
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby, islice
from pathlib import Path

import numpy as np
from samclip.cli.usage import Parser
from tqdm import tqdm

from samclip_core.errors import SamClipError
from services.retrieval import backup
from services.retrieval.backup import HEADER, PAGE, Line
from services.retrieval.index import OF, Collection, Collections, Item
from services.settings import SettingsError


class BackupError(Exception):
    """A file that is not a complete backup."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if the index has all items of the backup."""
    args = parser().parse_args(argv)
    try:
        with _readable(args.file) as file, backup.opened() as index:
            total = check(file)
            read(file, index, total)
            print(f"{total} items, {len(index)} collections in the index", file=sys.stderr)
    except (BackupError, SamClipError, SettingsError, OSError) as error:
        print(f"samclip restore: {error}", file=sys.stderr)
        return 1
    return 0


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser(
        prog="samclip restore",
        description="Add all collections of a backup to the index in the settings "
        "(SAMCLIP_REDIS_URL, or else SAMCLIP_INDEX_DIR, whose service must be stopped). Items "
        "with the same id are replaced, and others stay, so an interrupted run can be repeated.",
        examples=[
            "samclip restore collections.backup",
            "SAMCLIP_REDIS_URL=redis://HOST:6379/0 samclip restore collections.backup",
        ],
    )
    made.add_argument("file", metavar="FILE", help="file of samclip backup; -: standard input")
    return made


@contextmanager
def _readable(name: str) -> Iterator[Path]:
    """Yield a file that can be read twice."""
    if name != "-":
        yield Path(name)
        return
    with tempfile.NamedTemporaryFile(prefix="samclip-") as copy:
        shutil.copyfileobj(sys.stdin.buffer, copy)
        copy.flush()
        yield Path(copy.name)


def check(file: Path) -> int:
    """Return the number of items of a backup, before anything is changed. Raises BackupError."""
    count, last = 0, Line()
    for line in _lines(file):
        count += "id" in line
        last = line
    if last != {"items": count}:
        raise BackupError(f"{file} ends after {count} items: expected its last line; copy it again")
    return count


def read(file: Path, index: Collections, total: int) -> None:
    """Add the items of a backup. Raises InvalidRequest if a collection has other vectors."""
    collection: Collection | None = None
    with tqdm(total=total, unit="item", disable=not sys.stderr.isatty()) as progress:
        for is_item, lines in groupby(_lines(file), lambda line: "id" in line):
            if not is_item:
                for line in lines:
                    if "collection" in line:
                        collection = _collection(index, line["collection"])
                continue
            assert collection is not None
            while page := [_item(line) for line in islice(lines, PAGE)]:
                collection.upsert(page)
                progress.update(len(page))


def _collection(index: Collections, description: Line) -> Collection:
    tenant, _, name = description["name"].rpartition(OF)
    ours = index.of_model(description["digest"], description["dimension"])
    return ours.of_tenant(tenant).get_or_make(name, description["dtype"])


def _item(line: Line) -> Item:
    vector_D = np.frombuffer(base64.b64decode(line["vector"]), "<f4")
    return Item(line["id"], vector_D, line["metadata"])


def _lines(file: Path) -> Iterator[Line]:
    """Yield the lines after the header. Raises BackupError for another or a damaged file."""
    try:
        with gzip.open(file, "rt", encoding="utf-8") as text:
            if json.loads(text.readline()) != HEADER:
                raise BackupError(f"{file} is no backup of this version: see samclip backup")
            for line in text:
                yield json.loads(line)
    except (EOFError, gzip.BadGzipFile, zlib.error, ValueError) as error:
        raise BackupError(f"{file} is damaged or no backup ({error}): copy it again") from error


if __name__ == "__main__":
    sys.exit(main())
