"""Items, and the rows of the tables that have them."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from samclip_core.answers import stored_objects as objects
from services.retrieval.tables import KEY, pair

MAX_DIMENSION = 65_536
"""Numbers of a vector."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Item:
    """An image to store; ``vector_D`` is float32 of unit length.

    ``objects`` are packed (``samclip_core.answers.stored_objects``), or empty if none were indexed.
    """

    id: str
    vector_D: NDArray[np.float32]
    metadata: Mapping[str, str]
    objects: bytes = b""


def item_rows(dimension: int, items: Sequence[Item], editions: Mapping[str, int]) -> pa.Table:
    """Return items as rows. Raises TypeError for metadata that are no texts."""
    columns = {
        "id": pa.array([item.id for item in items], pa.string()),
        "vector": _vectors(dimension, pa.float32(), [item.vector_D for item in items]),
        "metadata": pa.array([json.dumps(dict(item.metadata)) for item in items], pa.string()),
        "pairs": _pairs(item.metadata for item in items),
        "packed": pa.array([item.objects for item in items], pa.large_binary()),
        "edition": pa.array([editions[item.id] for item in items], pa.int64()),
        "count": pa.array([objects.count(item.objects) for item in items], pa.int32()),
    }
    return _keyed(columns, KEY)


def object_rows(dimension: int, items: Sequence[Item], editions: Mapping[str, int]) -> pa.Table:
    """Return the objects of items as rows; without those that are damaged, which are logged."""
    owners, found = list[Item](), list[NDArray[np.float16]]()
    for item in items:
        try:
            vectors_of = (
                [*objects.Objects(item.objects, dimension).vector_RD] if item.objects else []
            )
        except ValueError as error:
            logger.warning("item %r is left out until it is indexed again: %s", item.id, error)
            continue
        owners += [item] * len(vectors_of)
        found += vectors_of
    columns = {
        "id": pa.array([item.id for item in owners], pa.string()),
        "vector": _vectors(dimension, pa.float16(), found),
        "pairs": _pairs(item.metadata for item in owners),
        "edition": pa.array([editions[item.id] for item in owners], pa.int64()),
    }
    return _keyed(columns, {})


def _keyed(columns: Mapping[str, pa.Array], key: Mapping[str, str]) -> pa.Table:
    fields = [pa.field(name, column.type, name != "id") for name, column in columns.items()]
    fields[0] = fields[0].with_metadata(key)
    return pa.table([*columns.values()], schema=pa.schema(fields))


def _pairs(every: Iterable[Mapping[str, str]]) -> pa.Array:
    listed = [[pair(*each) for each in metadata.items()] for metadata in every]
    return pa.array(listed, pa.list_(pa.string()))


def _vectors(dimension: int, kind: pa.DataType, found: Sequence[NDArray[Any]]) -> pa.Array:
    """Return a column of vectors of a kind. Raises ValueError unless they have this dimension."""
    flat = np.concatenate(found) if found else np.empty(0)
    if len(flat) != len(found) * dimension:
        raise ValueError(f"expected vectors of {dimension} numbers")
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, kind), dimension)


def to_bytes(vector_D: NDArray[np.float32]) -> bytes:
    """Return a vector as requests and backups have it: little-endian float32."""
    return np.ascontiguousarray(vector_D, "<f4").tobytes()


def to_vector(stored: bytes) -> NDArray[np.float32]:
    """Return the vector D of ``to_bytes``."""
    return np.frombuffer(stored, "<f4")


def unit_vector(stored: bytes, dimension: int) -> NDArray[np.float32]:
    """Return the vector of ``to_bytes``. Raises ValueError unless it has this size and length 1."""
    vector_D = to_vector(stored)
    if len(vector_D) != dimension or not abs(np.linalg.norm(vector_D) - 1) < 0.05:  # nor NaN
        raise ValueError(f"expected a vector of {dimension} numbers and of length 1")
    return vector_D


def numbers(column: pa.Array) -> NDArray[Any]:
    """Return a column of vectors, N × D."""
    flat: NDArray[Any] = column.flatten().to_numpy()
    return flat.reshape(len(column), -1)
