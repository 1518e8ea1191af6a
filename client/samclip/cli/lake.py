"""The tables that ``samclip batch`` writes, as ``samclip index --from`` reads them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from samclip import wire
from samclip.client import Client
from samclip.transport import blocking
from samclip.types import Indexed, Model
from samclip.v1 import samclip_pb2 as pb

ROWS = 1024  # of one request, the service's maximum, and one step of the progress bar
DIGITS = 64  # of a checkpoint's digest; those of its graphs may follow
_ORIGIN = ("source", "key")  # become metadata: an image that has changed has another key
_COLUMNS = ("id", "embedding", "metadata", *_ORIGIN)


@dataclass(frozen=True, eq=False)
class Rows:
    """Some images of one part: their ids, embeddings (N×D) and metadata, with the origin."""

    model: Model
    ids: Sequence[str]
    vectors: np.ndarray
    metadata: Sequence[Mapping[str, str]]

    def __len__(self) -> int:
        return len(self.ids)

    def without(self, held: Mapping[str, Mapping[str, str]]) -> "Rows":
        """Return the rows that are not held with the same metadata."""
        new = [n for n, id in enumerate(self.ids) if held.get(id) != self.metadata[n]]
        ids, metadata = [self.ids[n] for n in new], [self.metadata[n] for n in new]
        return replace(self, ids=ids, vectors=self.vectors[new], metadata=metadata)


class Part(NamedTuple):
    """A file of the table of images, and the model that made its embeddings."""

    files: Any  # the fsspec file system
    path: str
    total: int
    model: Model

    def rows(self) -> Iterator[Rows]:
        """Yield the images in order, ``ROWS`` at once. Raises ValueError for others."""
        from pyarrow import parquet

        with self.files.open(self.path) as file:
            table = parquet.ParquetFile(file)
            columns = [name for name in _COLUMNS if name in table.schema_arrow.names]
            for batch in table.iter_batches(ROWS, columns=columns):
                yield _rows(batch, self)


def parts(url: str) -> list[Part]:
    """Return the parts below the URL, by name.

    Raises ValueError if there is none, or one that ``samclip batch --embed`` did not write.
    """
    try:
        import fsspec
        from pyarrow import parquet  # noqa: F401 - what reads the parts
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--from reads Parquet and needs {error.name}: run pip install pyarrow fsspec"
        ) from None
    files, folder = fsspec.url_to_fs(url)
    paths = list[str]()
    with suppress(FileNotFoundError):
        listed = files.ls(f"{folder.rstrip('/')}/images", detail=False)
        paths = sorted(path for path in listed if path.endswith(".parquet"))
    if not paths:
        raise ValueError(
            f"no images/*.parquet below {url}: give the URL that samclip batch --embed wrote to"
        )
    return [_part(files, path) for path in paths]


@blocking
async def store(client: Client, collection: str, rows: Rows) -> Indexed:
    """Add rows to a collection."""
    vector_ND = np.ascontiguousarray(rows.vectors, "<f4")
    items = [
        wire.request(pb.IndexItem, id=id, vector=vector_D.tobytes(), metadata=pairs)
        for id, vector_D, pairs in zip(rows.ids, vector_ND, rows.metadata, strict=True)
    ]
    made = rows.model
    model = pb.ModelInfo(name=made.name, digest=made.digest, dtype=made.dtype, graphs=made.graphs)
    indexed = replaced = 0
    errors = dict[str, str]()
    for chunk in wire.chunks(items, ROWS):
        request = wire.request(pb.IndexRequest, collection=collection, items=chunk, model=model)
        reply = await client._session.ask(request)
        indexed, replaced = indexed + reply.indexed, replaced + reply.replaced
        errors.update({error.id: error.message for error in reply.errors})
    return Indexed(indexed, errors, replaced)


def _part(files: Any, path: str) -> Part:
    import pyarrow
    from pyarrow import parquet

    try:
        with files.open(path) as file:
            found = parquet.ParquetFile(file)
            schema, count = found.schema_arrow, found.metadata.num_rows
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not Parquet ({error}): run samclip batch again") from None
    stated = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
    if stated.get("samclip.schema") != "1" or "samclip.digest" not in stated:
        raise ValueError(f"{path} does not state schema 1 of samclip batch: give its output")
    if "embedding" not in schema.names:
        raise ValueError(f"{path} has no embeddings: run samclip batch with --embed")
    identity = stated["samclip.digest"]
    model = Model(
        stated.get("samclip.model", ""),
        identity[:DIGITS],
        kind="",
        dtype=stated.get("samclip.dtype", ""),
        graphs=stated.get("samclip.graphs", identity[DIGITS:]),
    )
    return Part(files, path, count, model)


def _rows(batch: Any, part: Part) -> Rows:
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
    return Rows(part.model, ids, flat.reshape(len(ids), -1), metadata)


def _column(batch: Any, name: str, count: int) -> Sequence[Any]:
    return batch[name].to_pylist() if name in batch.schema.names else [None] * count
