"""The tables of a batch, in files that are written as a whole."""

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from samclip.types import THUMBNAIL

from samclip_core.io.folder import Folder
from services.lake.heads import column

SCHEMA = "3"
"""Version of the columns: raise it when the meaning of one changes."""
IMAGES, FAILURES = "images", "failures"
UNREAD = "unread"
"""Column of failures: whether the image could not be read; and the number of these."""
PARTIAL = "_plan/partial"
"""Folder of files that are being written, on a disk."""

SCORE = pa.struct([("label", pa.string()), ("score", pa.float32()), ("similarity", pa.float32())])
_MASK = [
    ("label", pa.string()),
    ("label_score", pa.float32()),
    ("predicted_iou", pa.float32()),
    ("stability_score", pa.float32()),
    ("area", pa.int64()),
    ("box", pa.list_(pa.float32(), 4)),
    ("size", pa.list_(pa.int32(), 2)),
    ("counts", pa.binary()),
]
FAILURE = pa.schema(
    [*((name, pa.string()) for name in ("id", "source", "reason")), (UNREAD, pa.bool_())]
)


def images_schema(plan: Mapping[str, Any], version: str) -> pa.Schema:
    """Return the columns of ``images`` in a plan, with the model in the metadata of the file."""
    work, model = plan["work"], plan["model"]
    vector = pa.list_(pa.float32(), model["dimension"])
    asked = {
        "embedding": (vector, work["embed"]),
        THUMBNAIL: (pa.string(), work["embed"]),
        "labels": (pa.list_(SCORE), work["labels"]),
        "masks": (pa.list_(pa.struct(_MASK)), work["text"] or work["everything"]),
        "regions": (pa.list_(pa.struct([*_MASK, ("vector", vector)])), work["regions"]),
        "objects": (pa.binary(), work["regions"]),
        "semantic": (pa.binary(), work["semantic"]),
        **{column(spec): (pa.string(), True) for spec in work.get("heads", ())},
    }
    columns = [
        *((name, pa.string()) for name in ("id", "source", "key")),
        *((name, pa.int32()) for name in ("width", "height")),
        *((name, kind) for name, (kind, wanted) in asked.items() if wanted),
        ("metadata", pa.map_(pa.string(), pa.string())),
    ]
    about = {
        "samclip.model": model["name"],
        "samclip.digest": model["digest"],
        "samclip.graphs": model["graphs"],
        "samclip.dtype": model["dtype"],
        "samclip.parts": str(plan["parts"]),
        "samclip.version": version,
        "samclip.schema": SCHEMA,
    }
    return pa.schema(columns, metadata=about)


def part_name(number: int) -> str:
    """Return the name of a part's file, without suffix."""
    return f"part-{number:05d}"


class Rows:
    """A Parquet file that rows are added to; the same rows make the same bytes."""

    AT_ONCE = 256
    """Rows of a row group: this many are held in memory."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema, self._rows, self.count = schema, list[dict[str, Any]](), 0
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")

    def add(self, row: dict[str, Any]) -> None:
        """Add a row, by the names of the columns."""
        self._rows.append(row)
        self.count += 1
        if len(self._rows) == self.AT_ONCE:
            self._flush()

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the last rows, and metadata of the whole file."""
        if self._rows:
            self._flush()
        self._writer.add_key_value_metadata(metadata)

    def close(self) -> None:
        """Close the file, which is whole if it was finished."""
        self._writer.close()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows.clear()


@contextmanager
def writing(folder: Folder, name: str) -> Iterator[Path]:
    """Yield a file on a disk to write to; afterwards it is the folder's file ``name``.

    Several processes may write the same name at once: the file is always of one of them.
    """
    with ExitStack() as stack:
        if folder.disk is None:  # an upload is one operation
            yield stack.enter_context(folder.replacing(name))
            return
        partial = folder.disk / PARTIAL / uuid.uuid4().hex
        partial.parent.mkdir(parents=True, exist_ok=True)
        stack.callback(partial.unlink, missing_ok=True)
        yield partial
        target = folder.disk / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(target)
        except FileNotFoundError:  # another process has written all parts, and cleaned up
            if not target.exists():
                raise
