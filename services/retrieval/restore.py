"""``samclip restore``: add the collections of a backup to the index."""

import base64
import gzip
import json
import re
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, Field, TypeAdapter
from samclip.cli.usage import Parser
from tqdm import tqdm

from samclip_core import guarded
from samclip_core.answers import stored_objects as objects
from samclip_core.answers.stored_objects import Objects
from samclip_core.errors import InvalidRequest, SamClipError, Unavailable
from services.request.context import NAME
from services.retrieval import backup
from services.retrieval.backup import HEADER, LONGEST
from services.retrieval.checks import DTYPE, OF, check_collections, check_dtype, check_item
from services.retrieval.collection import PAGE, Entry
from services.retrieval.concepts import check_concept, check_count, check_stored
from services.retrieval.index import OF_CONCEPTS, Collections, check_room
from services.retrieval.registry import Staged
from services.retrieval.rows import MAX_DIMENSION, Item, unit_vector
from services.settings import Settings, SettingsError

OWNER = f"({NAME.pattern}|({NAME.pattern})?{re.escape(OF_CONCEPTS)})"
"""A tenant, or a tenant's or everybody's concepts."""


class _Description(BaseModel, strict=True):
    """A collection. Its name may begin with its owner; it is checked, because it names a file."""

    name: str = Field(pattern=f"^({OWNER}{OF})?{NAME.pattern}$")
    dimension: int = Field(ge=1, le=MAX_DIMENSION)
    digest: str = Field(min_length=1, max_length=128)
    dtype: str = Field(pattern=f"^{DTYPE}$")


class _Collection(BaseModel):
    collection: _Description


class _Item(BaseModel, strict=True):
    id: str = Field(min_length=1)
    metadata: dict[str, str]
    vector: str
    objects: str = ""

    def checked(self, of: _Description, settings: Settings) -> Item:
        """Return the item. Raises ValueError unless its vector has this size and unit length.

        Raises ValueError for objects that cannot be searched, and InvalidRequest for an id or
        metadata that Index refuses too, and for what is no concept among concepts.
        """
        dimension = of.dimension
        check_item(self.id, self.metadata, settings.max_metadata_bytes)
        vector_D = unit_vector(base64.b64decode(self.vector, validate=True), dimension)
        packed = base64.b64decode(self.objects, validate=True)
        if packed:
            Objects(packed, dimension).check(settings.max_image_pixels)
        item = Item(self.id, vector_D, self.metadata, packed)
        if OF_CONCEPTS in of.name:
            check_concept(item)
        return item


class _End(BaseModel, strict=True):
    items: int


_LINE: TypeAdapter[_Collection | _Item | _End] = TypeAdapter(_Collection | _Item | _End)


class BackupError(Exception):
    """A file that is not a complete backup."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if the index has all items of the backup."""
    args = parser().parse_args(argv)
    try:
        with _readable(args.file) as file, backup.opened() as index:
            total = read(file, args.file, index, Settings.load(None))
            print(f"{total} items, {len(index)} collections in the index", file=sys.stderr)
    except (BackupError, SamClipError, SettingsError, OSError, ValueError) as error:
        print(f"samclip restore: {error}", file=sys.stderr)
        return 1
    return 0


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser(
        prog="samclip restore",
        description="Add all collections of a backup to the index in the settings "
        "(SAMCLIP_INDEX_DIR), all of them or none. Items with the same id are replaced, and others "
        "stay. A service may go on: what it changes meanwhile counts as later.",
        examples=[
            "samclip restore collections.backup",
            "SAMCLIP_INDEX_DIR=s3://bucket/index samclip restore collections.backup",
        ],
    )
    made.add_argument("file", metavar="FILE", help="file of samclip backup; -: standard input")
    return made


@contextmanager
def _readable(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
        return
    with guarded.open_regular(Path(name)) as file:
        yield file


def read(file: BinaryIO, name: str, index: Collections, settings: Settings) -> int:
    """Add the items of a backup, all or none, by the rules of ``Index``; return their number.

    Raises BackupError, Unavailable, and InvalidRequest for what cannot be added: vectors of another
    model or precision than a collection's, or more than the limits of the settings allow.
    """
    staged, count = dict[str, Staged](), 0
    with ExitStack() as stack, tqdm(unit="item", disable=not sys.stderr.isatty()) as progress:
        for of, page in _pages(file, name, settings):
            if page:
                _add(page, of, index, staged, settings)
            else:
                _check_collection(of, index, staged, settings)
                entry = Entry(of.name, "", of.digest, of.dimension, of.dtype)
                staged[of.name] = stack.enter_context(index.registry.staged(entry))
            count += len(page)
            progress.update(len(page))
        index.registry.put([*staged.values()])
    return count


def _check_collection(
    of: _Description, index: Collections, staged: Mapping[str, Staged], settings: Settings
) -> None:
    """Raise InvalidRequest for a collection that cannot be added, BackupError if it comes again."""
    if of.name in staged:
        raise BackupError(f"the collection {of.name!r} comes twice: it is no backup")
    ours, name = _place(index, of)
    if OF_CONCEPTS in of.name:
        check_stored(of.name, of.digest, of.dtype)
    try:
        there = ours.find(name)
    except Unavailable as error:
        raise Unavailable(
            f"collection {of.name!r} cannot be read, and nothing has changed: if its table is "
            f"lost, delete it, then restore it ({error})"
        ) from error
    if there is None:
        new = sum(each.there is None for each in _of_owner(of.name, staged))
        check_collections(len(ours) + new, settings)
    else:
        check_dtype(name, ours.get(name).dtype, of.dtype)


def _add(
    page: Sequence[Item],
    of: _Description,
    index: Collections,
    staged: Mapping[str, Staged],
    settings: Settings,
) -> None:
    """Add items to a staged collection. Raises InvalidRequest if there are too many."""
    made = staged[of.name].made
    latest = {item.id: item for item in page}
    found = sum(objects.count(item.objects) for item in latest.values())
    check_room(made, latest.keys(), found, settings)
    made.upsert(page, of.digest)
    if OF_CONCEPTS in of.name:
        others = [each for each in _place(index, of)[0].every() if each.name not in staged]
        check_count(sum(map(len, [*others, *(one.made for one in _of_owner(of.name, staged))])) - 1)


def _of_owner(name: str, staged: Mapping[str, Staged]) -> list[Staged]:
    owner = name.rpartition(OF)[0]
    return [each for other, each in staged.items() if other.rpartition(OF)[0] == owner]


def _place(index: Collections, description: _Description) -> tuple[Collections, str]:
    """Return the collections of the tenant and the model, and the name among them."""
    return index.of_model(description.digest, description.dimension).of_owner(description.name)


def _pages(
    packed: BinaryIO, file: str, settings: Settings
) -> Iterator[tuple[_Description, list[Item]]]:
    """Yield each collection, first without items: it may have none.

    Raises BackupError for another, a damaged or a shortened file, or an item that Index would
    refuse.
    """
    number, count, of, ended = 1, 0, None, False
    page = list[Item]()
    try:
        with gzip.open(packed) as lines:
            if json.loads(lines.readline(LONGEST)) != HEADER:
                raise BackupError(f"{file} is no backup of this version: see samclip backup")
            while text := lines.readline(LONGEST):
                number += 1
                line = _LINE.validate_json(text)
                if isinstance(line, _Item):
                    if of is None:
                        raise ValueError("an item without a collection")
                    page.append(line.checked(of, settings))
                    count += 1
                if of and page and (len(page) == PAGE or not isinstance(line, _Item)):
                    yield of, page
                    page = []
                if isinstance(line, _Collection):
                    of = line.collection
                    yield of, []
                ended = line == _End(items=count)
    except InvalidRequest as error:
        raise BackupError(f"line {number} of {file} cannot be restored: {error}") from error
    except (EOFError, gzip.BadGzipFile, zlib.error, ValueError, RecursionError) as error:
        raise BackupError(
            f"line {number} of {file} is damaged, or it is no backup: copy it again"
        ) from error
    if not ended:
        raise BackupError(f"{file} ends after {count} items: expected its last line; copy it again")
