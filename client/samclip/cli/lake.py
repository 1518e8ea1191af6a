"""The tables that ``samclip batch`` writes, as ``samclip index --from`` reads them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from samclip import wire
from samclip.cli.saved import without_thumbnail
from samclip.client import Client
from samclip.errors import NotFound
from samclip.patience import patiently
from samclip.thumbnails import index
from samclip.transport import blocking
from samclip.types import THUMBNAIL, Indexed, ListedItem, Model
from samclip.v1 import samclip_pb2 as pb

ROWS = 1024  # of one request, the service's maximum, and one step of the progress bar
ROWS_WITH_OBJECTS = 128  # the same with objects: some 16 MB
JOINED_BYTES = 64 * 2**20
SCHEMA = "3"  # of samclip batch
DIGITS = 64  # of a checkpoint's digest; those of its graphs may follow
_ORIGIN = (THUMBNAIL, "source", "key")  # become metadata: one that changes has another key
_COLUMNS = ("id", "embedding", "metadata", *_ORIGIN)
_OBJECTS = "objects"
EQUAL_IDS = (
    "{:,} images replaced others that this run had added, because ids occur more than once in {} "
    "(or a request was repeated): one of the images of each id can be found"
)
UNREAD = (
    "{:,} images of {} could not be read, and are not in the collection: run samclip batch again, "
    "and then this command"
)
UNFINISHED = (
    "{} has {:,} of {:,} parts: run samclip batch again, and then this command for the others"
)
LOST = (
    "{:,} images whose metadata or file has changed were replaced, and their objects deleted: run "
    "the command again with --objects to store objects, if {} has them"
)


@dataclass(frozen=True, eq=False)
class Rows:
    """Some images of one part: their ids, embeddings (N×D), metadata with the origin, and objects.

    Objects are bytes for the service, empty where an image has none or they were not asked for.
    """

    model: Model
    ids: Sequence[str]
    vectors: np.ndarray
    metadata: Sequence[Mapping[str, str]]
    objects: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.ids)

    def without(self, held: Mapping[str, ListedItem]) -> "Rows":
        """Return the rows that are not held with the same metadata, and with objects if any."""
        new = [n for n, id in enumerate(self.ids) if not self._is(n, held.get(id))]
        ids, metadata = [self.ids[n] for n in new], [self.metadata[n] for n in new]
        return Rows(self.model, ids, self.vectors[new], metadata, [self.objects[n] for n in new])

    def _is(self, n: int, item: ListedItem | None) -> bool:
        # A service may have had no room for the thumbnail.
        same = self.metadata[n], without_thumbnail(self.metadata[n])
        if item is None or item.metadata not in same:
            return False
        return item.objects > 0 or not self.objects[n]


class TableFile(NamedTuple):
    """A file of the table of images, the model of its embeddings, and whether objects are read.

    ``plan`` is the digest of the batch, which has so many ``parts``; ``unread`` counts the images
    of this part that it could not read.
    """

    path: str
    total: int
    model: Model
    objects: bool
    plan: str
    parts: int
    unread: int

    def rows(self) -> Iterator[Rows]:
        """Yield the images in order, up to ``ROWS`` at once. Raises ValueError for others."""
        from samclip.cli.parquet import Table
        from samclip.cli.places import open_file

        wanted = (*_COLUMNS, _OBJECTS) if self.objects else _COLUMNS
        most = ROWS_WITH_OBJECTS if self.objects else ROWS
        with open_file(self.path) as file:
            table = Table(file)
            columns = [name for name in wanted if name in table.schema.names]
            for batch in _joined(table.batches(range(len(table.groups)), columns, most), most):
                yield _rows(batch, self)


def parts(url: str, objects: bool) -> list[TableFile]:
    """Return the parts below the URL, by name; their rows are read with or without objects.

    Raises ValueError if there is none, or one that ``samclip batch --embed`` did not write, or not
    with ``--regions`` if objects are wanted.
    """
    try:
        from samclip.cli import parquet  # noqa: F401 - what reads the parts
        from samclip.cli.places import system_of, url_of
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--from reads Parquet and needs {error.name}: run pip install pyarrow fsspec"
        ) from None
    files, folder = system_of(url)
    paths = list[str]()
    with suppress(FileNotFoundError):
        listed = files.ls(f"{folder.rstrip('/')}/images", detail=False)
        paths = sorted(path for path in listed if path.endswith(".parquet"))
    if not paths:
        raise ValueError(
            f"no images/*.parquet below {url}: give the URL that samclip batch --embed wrote to"
        )
    found = [_part(url_of(files, path), objects) for path in paths]
    if other := next((part for part in found if part.plan != found[0].plan), None):
        raise ValueError(
            f"{other.path} is of another batch than {found[0].path}: give the URL of one batch"
        )
    return found


def lacking(found: Sequence[TableFile], url: str) -> Iterator[str]:
    """Yield what the parts of a batch lack."""
    if unread := sum(part.unread for part in found):
        yield UNREAD.format(unread, url)
    if len(found) < found[0].parts:
        yield UNFINISHED.format(url, len(found), found[0].parts)


class Loader:
    """Sends rows to a collection; several threads may. ``skipped`` counts those that it has."""

    def __init__(
        self, client: Client, collection: str, metadata: Mapping[str, str], objects: bool
    ) -> None:
        """``metadata`` is that of every image, unless its row has others under these names."""
        self._client, self._collection = client, collection
        self._metadata, self._objects = metadata, objects
        self._lock = Lock()
        self.skipped = self._lost = 0
        self._made_by = ""
        with suppress(NotFound):
            held = patiently(lambda: client.describe(collection))[0]
            self._made_by = held.model_digest if held.count else ""

    def send(self, rows: Rows) -> Indexed:
        """Store those rows that the collection does not have with the same metadata and objects."""
        new = replace(rows, metadata=[{**self._metadata, **found} for found in rows.metadata])
        held = dict[str, ListedItem]()
        if rows.model.digest == self._made_by:  # the service refuses those of another model
            held = self._held(new.ids)
            new = new.without(held)
        done = store(self._client, self._collection, new)
        had = {id for id in new.ids if id in held and held[id].objects and id not in done.errors}
        with self._lock:
            self.skipped += len(rows) - len(new)
            self._lost += 0 if self._objects else len(had)
        return done

    def warnings(self, done: Indexed, url: str) -> Iterator[str]:
        """Yield what a user should know about a run, besides its counts."""
        if done.replaced and not self._made_by:
            yield EQUAL_IDS.format(done.replaced, url)
        if self._lost:
            yield LOST.format(self._lost, url)

    def _held(self, ids: Sequence[str]) -> dict[str, ListedItem]:
        return {item.id: item for item in self._client.list_items(self._collection, ids=ids)}


@blocking
async def store(client: Client, collection: str, rows: Rows) -> Indexed:
    """Add rows to a collection."""
    vector_ND = np.ascontiguousarray(rows.vectors, "<f4")
    items = [
        wire.request(
            pb.IndexItem, id=id, vector=vector_D.tobytes(), metadata=pairs, objects=objects
        )
        for id, vector_D, pairs, objects in zip(
            rows.ids, vector_ND, rows.metadata, rows.objects, strict=True
        )
    ]
    made = rows.model
    model = pb.ModelInfo(name=made.name, digest=made.digest, dtype=made.dtype, graphs=made.graphs)
    indexed = replaced = 0
    errors = dict[str, str]()
    for chunk in wire.chunks(items, ROWS):
        request = wire.request(pb.IndexRequest, collection=collection, items=chunk, made_by=model)
        done = await index(client._session, request)
        indexed, replaced = indexed + done.indexed, replaced + done.replaced
        errors |= done.errors
    return Indexed(indexed, errors, replaced)


def _joined(batches: Iterable[Any], most: int) -> Iterator[Any]:
    """Yield batches of ``most`` rows or JOINED_BYTES made of smaller ones."""
    import pyarrow

    held = list[Any]()
    for batch in batches:
        rows, size = sum(map(len, held)) + len(batch), sum(each.nbytes for each in held)
        if held and (rows > most or size > JOINED_BYTES):
            yield from pyarrow.Table.from_batches(held).combine_chunks().to_batches()
            held.clear()
        held.append(batch)
    if held:
        yield from pyarrow.Table.from_batches(held).combine_chunks().to_batches()


def _part(path: str, objects: bool) -> TableFile:
    from samclip.cli.parquet import Table
    from samclip.cli.places import open_file

    try:
        with open_file(path) as file:
            found = Table(file)
            schema, count = found.schema, sum(found.groups)
            stated = {key.decode(): value.decode() for key, value in found.metadata.items()}
    except ValueError as error:
        raise ValueError(f"{path} is not Parquet ({error}): run samclip batch again") from None
    if stated.get("samclip.schema") != SCHEMA or "samclip.digest" not in stated:
        raise ValueError(
            f"{path} does not state schema {SCHEMA} of samclip batch: give its output, or run it "
            "again with another --out if an earlier version wrote this one"
        )
    if "embedding" not in schema.names:
        raise ValueError(f"{path} has no embeddings: run samclip batch with --embed")
    if objects and _OBJECTS not in schema.names:
        raise ValueError(
            f"{path} has no objects: run samclip batch with --embed --regions and another --out, "
            "or leave --objects out to search for whole images"
        )
    identity = stated["samclip.digest"]
    model = Model(
        stated.get("samclip.model", ""),
        identity[:DIGITS],
        kind="",
        dtype=stated.get("samclip.dtype", ""),
        graphs=stated.get("samclip.graphs", identity[DIGITS:]),
    )
    part_count, unread = (int(stated.get(f"samclip.{name}", 0)) for name in ("parts", "unread"))
    plan = stated.get("samclip.plan", "")
    return TableFile(path, count, model, objects, plan, part_count, unread)


def _rows(batch: Any, part: TableFile) -> Rows:
    ids, vectors = batch["id"].to_pylist(), batch["embedding"]
    if vectors.null_count or None in ids:
        raise ValueError(
            f"{part.path} has rows without an id or an embedding: run samclip batch again"
        )
    flat = np.asarray(vectors.flatten(), np.float32)
    origins = zip(*(_column(batch, name, len(ids)) for name in _ORIGIN), strict=True)
    given = _column(batch, "metadata", len(ids))
    metadata = [
        {name: of for name, of in zip(_ORIGIN, origin, strict=True) if of} | dict(pairs or ())
        for origin, pairs in zip(origins, given, strict=True)
    ]
    packed = _column(batch, _OBJECTS, len(ids)) if part.objects else [None] * len(ids)
    objects = [each or b"" for each in packed]
    return Rows(part.model, ids, flat.reshape(len(ids), -1), metadata, objects)


def _column(batch: Any, name: str, count: int) -> Sequence[Any]:
    return batch[name].to_pylist() if name in batch.schema.names else [None] * count
