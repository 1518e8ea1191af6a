"""The objects that a search has found: which one of an image is meant, and how it is drawn."""

import logging
from collections.abc import Iterable, Iterator

from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.stored_objects import Object, Objects
from services.request import wire
from services.retrieval.query import Query

logger = logging.getLogger(__name__)
ObjectHit = tuple[pb.Hit, Object]


def meant(packed: bytes, query: Query, dimension: int) -> Object:
    """Return the object of an image that a query means."""
    found = Objects(packed, dimension)
    if query.sought is None:
        return found[int((found.vector_RD @ query.vector_D).argmax())]
    return found[query.sought.best(*(part.numbers for part in found.parts))]


def drawn(found: Iterable[ObjectHit]) -> Iterator[pb.Hit]:
    """Yield each hit with the box and the mask of its object, unless these are damaged."""
    for hit, best in found:
        try:
            hit.mask.CopyFrom(wire.to_everything_mask(best.found(), pb.RLE))
        except ValueError as error:
            logger.warning("item %r is left out until it is indexed again: %s", hit.id, error)
            continue
        hit.box.CopyFrom(hit.mask.box)
        yield hit
