"""Checks of collections and their items, with the errors that both engines share."""

from collections.abc import Mapping

from samclip_core.errors import InvalidRequest, NotFound
from samclip_core.io import checkpoint
from services.request.context import NAME
from services.request.limits import check_metadata

OF = "@"
"""Separates the tenant from the collection in stored names; ``check_name`` refuses it."""
MAX_ID = 256
"""Characters of an item's id."""


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
            f"service runs {checkpoint.shown(ours)}, and their vectors cannot be compared: index "
            "the images again under another name (samclip reindex), or delete the collection first"
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


def check_item(id: str, metadata: Mapping[str, str], most_bytes: int) -> None:
    """Raise InvalidRequest for an id of another length, or more metadata than ``most_bytes``."""
    if not 0 < len(id) <= MAX_ID:
        raise InvalidRequest(
            f"the id has {len(id):,} characters, expected 1 to {MAX_ID}: send another"
        )
    check_metadata(metadata, most_bytes)


def no_collection(name: str) -> NotFound:
    """Return the error for a name that no collection has."""
    return NotFound(f"no collection {name!r}: index images into it first")


def no_item(id: str, name: str) -> NotFound:
    """Return the error for an id that a collection does not have."""
    return NotFound(
        f"no item {id[:80]!r} in collection {own(name)!r}: index it first, or search by text or "
        "image"
    )


def own(name: str) -> str:
    """Return a stored name without its tenant."""
    return name.rpartition(OF)[2]
