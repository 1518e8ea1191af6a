"""A search of packed objects: the images whose nearest object is nearest to a query."""

import heapq
import logging
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from samclip.v1 import samclip_pb2 as pb
from usearch.index import MetricKind, search

from samclip_core.answers.steps import Steps
from samclip_core.answers.zero_shot import unit
from services.retrieval.objects import Object, Objects
from services.retrieval.query import Query

logger = logging.getLogger(__name__)

PAGE = 16
"""Images whose objects are compared at once: at most 16 MiB, and of photographs some 2 MB."""

SPARE = 1000
"""Images that are compared beyond twice the hits before the best of them are chosen."""

Page = Sequence[tuple[str, bytes]]
"""Ids of images and their packed objects."""
Best = tuple[str, float]
"""The id of an image, and the cosine of its object that is nearest to a query."""


def nearest(pages: Iterable[Page], query: Query, dimension: int) -> Steps[list[Best]]:
    """Return the hits of a query: images by their nearest object, each once, best first."""
    wanted, hits = query.offset + query.top_k, list[Best]()

    def best() -> list[Best]:
        return heapq.nsmallest(wanted, hits, key=lambda hit: (-hit[1], hit[0]))

    for number, page in enumerate(pages):
        if number:
            yield None
        for id, score in _compared(page, unit(query.vector_D), dimension):
            if id != query.exclude and query.accepts(score):
                hits.append((id, score))
        if len(hits) > 2 * wanted + SPARE:
            hits = best()
    return best()[query.offset :]


def meant(packed: bytes, query: Query, dimension: int) -> Object:
    """Return the object of an image that a query means."""
    found = Objects(packed, dimension)
    if query.sought is None:
        return found[int((found.vector_RD @ query.vector_D).argmax())]
    return found[query.sought.best(*(part.numbers for part in found.parts))]


def drawn(found: Iterable[tuple[pb.Hit, Object]]) -> Iterator[pb.Hit]:
    """Yield each hit with the box and the mask of its object, unless these are damaged."""
    for hit, best in found:
        try:
            hit.mask.CopyFrom(best.mask())
        except ValueError as error:
            logger.warning("item %r is left out until it is indexed again: %s", hit.id, error)
            continue
        hit.box.CopyFrom(hit.mask.box)
        yield hit


def _read(id: str, packed: bytes, dimension: int) -> Objects | None:
    """Return the objects of an image, or None if they are damaged: the others can be searched."""
    try:
        return Objects(packed, dimension)
    except ValueError as error:
        logger.warning("item %r is left out until it is indexed again: %s", id, error)
        return None


def _compared(page: Page, query_D: NDArray[np.float32], dimension: int) -> Iterator[Best]:
    """Yield the best object of each image, from one product with all vectors of the page."""
    held = [(id, found) for id, packed in page if (found := _read(id, packed, dimension))]
    if not held:
        return
    vectors_ND = np.concatenate([part.vector_RD for _, found in held for part in found.parts])
    # Numpy would take ten times as long, because it converts float16 first.
    query = query_D.astype(np.float16)
    ranked = search(vectors_ND, query, len(vectors_ND), MetricKind.IP, exact=True, threads=1)
    end_N = np.cumsum([len(found) for _, found in held])
    owner_N = np.searchsorted(end_N, ranked.keys, side="right")
    for number, first in zip(*np.unique(owner_N, return_index=True), strict=True):
        yield held[number][0], float(1 - ranked.distances[first])
