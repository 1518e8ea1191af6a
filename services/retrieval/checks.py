"""Checks of collections and their items, with the errors that both engines share."""

import re
from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
from samclip.v1 import samclip_pb2 as pb

from samclip_core.engine.base import Dtype
from samclip_core.errors import InvalidRequest, NotFound, Unavailable
from samclip_core.io import checkpoint
from services.request.context import NAME
from services.request.limits import check_metadata
from services.retrieval.tables import MAX_ID
from services.settings import Settings

OF = "@"
"""Separates the tenant from the collection in stored names; ``check_name`` refuses it."""
DTYPE = f"(({'|'.join(map(re.escape, get_args(Dtype)))})(:[0-9a-z]{{1,64}})?)?"
"""A precision as collections record it, such as "float32" or "int8:4caf4841"; or none."""
IDENTITY = re.compile("[0-9a-f]{64}([0-9a-f]{64})?")
"""The digest of a checkpoint, and that of its graphs if it has some."""


def check_name(name: str) -> None:
    """Raise InvalidRequest unless the name is valid for a collection, and so for its files."""
    if not NAME.fullmatch(name):
        raise InvalidRequest(
            f"collection {name[:80]!r}: expected a name of 1 to 64 letters, digits, dots, dashes "
            "and underscores that does not start with a dot or dash"
        )


def check_model(name: str, digest: str, ours: str) -> None:
    """Raise InvalidRequest unless a collection's model agrees with ours; both are identities."""
    if not checkpoint.agree(digest, ours):
        raise InvalidRequest(
            f"collection {own(name)!r} was made with model {checkpoint.shown(digest)}, this "
            f"service runs {checkpoint.shown(ours)}, and their vectors cannot be compared: if "
            "the service has both, name no model; otherwise index the images again under another "
            "name (samclip reindex), or delete the collection first"
        )


def check_dtype(name: str, dtype: str, ours: str) -> None:
    """Raise InvalidRequest unless a collection's vectors have the precision of the new ones."""
    if dtype != ours:
        setting, here = dtype.partition(":")[0], ours.partition(":")[0]
        raise InvalidRequest(
            f"collection {own(name)!r} has vectors computed in {dtype or 'an unknown precision'}, "
            f"but this service computes in {ours}, and a collection cannot mix precisions: "
            + (f"set SAMCLIP_DTYPE to {setting}, or " if setting not in ("", here) else "")
            + "index the images again under another name (samclip reindex)"
        )


def check_collections(count: int, settings: Settings) -> None:
    """Raise InvalidRequest if there may be no other collection beside these."""
    if count >= settings.max_collections:
        raise InvalidRequest(
            f"there are {settings.max_collections:,} collections already, which is the limit: "
            "delete one, or add to an existing one"
        )


def check_items(name: str, count: int, new: int, settings: Settings) -> None:
    """Raise InvalidRequest if a collection of ``count`` items may not have so many new ones."""
    if count + new > settings.max_collection_items:
        raise InvalidRequest(
            f"collection {own(name)!r} has {count:,} items, and {new:,} more would exceed the "
            f"limit of {settings.max_collection_items:,}: delete some, or choose another collection"
        )


def check_objects(name: str, others: int, added: int, settings: Settings) -> None:
    """Raise InvalidRequest if items with ``added`` objects may not be beside the others."""
    if added and others + added > settings.max_collection_objects:
        raise InvalidRequest(
            f"collection {own(name)!r} has {others:,} objects in other items, and {added:,} more "
            f"would exceed the limit of {settings.max_collection_objects:,}: delete some items, "
            "choose another collection, or index without objects"
        )


def check_item(id: str, metadata: Mapping[str, str], most_bytes: int) -> None:
    """Raise InvalidRequest for an id of another length, or more metadata than ``most_bytes``."""
    if not 0 < len(id) <= MAX_ID:
        raise InvalidRequest(
            f"the id has {len(id):,} characters, expected 1 to {MAX_ID}: send another"
        )
    check_metadata(metadata, most_bytes)


def check_vectors(request: pb.IndexRequest, ours: pb.ModelInfo) -> None:
    """Raise InvalidRequest unless the items may have vectors instead of images."""
    if request.objects:
        raise InvalidRequest(
            "the objects are found in images: send images, or the objects of each item beside its "
            "vector"
        )
    if any(item.HasField("image") or not item.vector for item in request.items):
        raise InvalidRequest(
            "the request has vectors or their objects, or names their model: send a vector for "
            "each item and no image, or images alone"
        )
    theirs = request.made_by
    named = IDENTITY.fullmatch(theirs.digest + theirs.graphs)
    if not named or not checkpoint.agree(theirs.digest + theirs.graphs, ours.digest + ours.graphs):
        made_with = checkpoint.shown(theirs.digest + theirs.graphs) or "a model that is not named"
        raise InvalidRequest(
            f"the vectors were made with {made_with}, this service runs "
            f"{checkpoint.shown(ours.digest + ours.graphs)}, and their vectors cannot be compared: "
            "name the model that made the vectors, or send the images"
        )
    if not re.fullmatch(DTYPE, theirs.dtype):
        raise InvalidRequest(
            f"the precision {theirs.dtype[:80]!r}: expected one like float32 or int8:4caf4841, or "
            "none if it is not known"
        )


def lengths(stored: Sequence[bytes], dimension: int) -> list[float]:
    """Return the length of each vector, NaN of one that is not ``dimension`` float32."""
    size = 4 * dimension
    nothing = b"\xff" * size  # NaN
    joined = b"".join(one if len(one) == size else nothing for one in stored)
    vector_ND = np.frombuffer(joined, "<f4").reshape(-1, dimension)
    return np.linalg.norm(vector_ND.astype(np.float64), axis=1).tolist()


def check_vector(stored: bytes, dimension: int, length: float) -> None:
    """Raise InvalidRequest unless these are ``dimension`` numbers, float32, of length 1.

    ``length`` is that of ``lengths``.
    """
    if len(stored) != 4 * dimension:
        raise InvalidRequest(
            f"the vector has {len(stored):,} bytes, expected {dimension} little-endian float32: "
            "send the embedding of this model"
        )
    if not abs(length - 1) < 1e-3:  # nor NaN
        raise InvalidRequest(f"the vector has length {length:.4g}, expected 1: normalise it")


def no_collection(name: str) -> NotFound:
    """Return the error for a name that no collection has."""
    return NotFound(f"no collection {name!r}: index images into it first")


def changed_meanwhile(name: str) -> Unavailable:
    """Return the error for a collection that another process has deleted or made meanwhile."""
    return Unavailable(
        f"another process has deleted or made collection {own(name)!r} meanwhile: try again"
    )


def no_item(id: str, name: str) -> NotFound:
    """Return the error for an id that a collection does not have."""
    return NotFound(
        f"no item {id[:80]!r} in collection {own(name)!r}: index it first, or search by text or "
        "image"
    )


def own(name: str) -> str:
    """Return a stored name without its tenant and the number of its shard."""
    return name.rpartition(OF)[2].partition("/")[0]
