"""Add what a batch has made to a collection of the index, without a service."""

from collections.abc import Iterator

from samclip.cli import lake
from samclip.types import Indexed

from samclip_core.answers.stored_objects import Objects
from samclip_core.errors import InvalidRequest
from services.retrieval.checks import OF, check_item, check_name, check_vector, lengths
from services.retrieval.engine import open_index
from services.retrieval.index import Collections
from services.retrieval.rows import Item, to_bytes
from services.settings import Settings


def append(url: str, name: str, with_objects: bool, settings: Settings) -> Indexed:
    """Add the images of a batch at ``url``, replacing those of the same ids, and index them.

    ``name`` may begin with the tenant, as in a backup. An image that a service would refuse is an
    error of the result. Raises ValueError for no batch with vectors, Unavailable, and
    InvalidRequest for a collection of another model or beyond the limits.
    """
    every, errors, indexed, replaced = opened(settings), dict[str, str](), 0, 0
    for part in lake.parts(url, with_objects):
        for rows in part.rows():
            made = rows.model.digest + rows.model.graphs
            ours, own = every.of_model(made, rows.vectors.shape[1]).of_owner(name)
            items = [*_items(rows, settings, errors)]
            replaced += ours.add(own, rows.model.dtype, items, settings) if items else 0
            indexed += len(items)
    while work := every.registry.due():
        work()
    return Indexed(indexed, errors, replaced)


def check(name: str) -> None:
    """Raise InvalidRequest for a name that no collection may have."""
    tenant, _, own = name.rpartition(OF)
    for part in (own, *([tenant] if tenant else [])):
        check_name(part)


def opened(settings: Settings) -> Collections:
    """Return the collections of the index. Raises Unavailable and OSError."""
    return Collections(open_index(settings), "", 0)


def _items(rows: lake.Rows, settings: Settings, errors: dict[str, str]) -> Iterator[Item]:
    """Yield the images that may be stored; of the others, the reason goes to ``errors``."""
    dimension = rows.vectors.shape[1]
    stored = [to_bytes(vector_D) for vector_D in rows.vectors]
    found = zip(rows.ids, rows.metadata, rows.objects, lengths(stored, dimension), strict=True)
    for number, (id, metadata, packed, length) in enumerate(found):
        try:
            check_item(id, metadata, settings.max_metadata_bytes)
            check_vector(stored[number], dimension, length)
            if packed:
                Objects(packed, dimension).check(settings.max_image_pixels)
        except (InvalidRequest, ValueError) as error:
            errors[id] = str(error)
        else:
            yield Item(id, rows.vectors[number], metadata, packed)
