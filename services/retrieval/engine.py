"""Which engine keeps the index: Redis where one with vector sets is configured, else files."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ParamSpec, TypeVar

from services.batching import threads
from services.retrieval.embedded import EmbeddedCollections
from services.retrieval.index import Collections
from services.retrieval.vector_sets import VectorSets, connect, has_vector_sets
from services.settings import Settings

ONE_SERVER = ("redis", "rediss", "unix")
"""A Cluster's and a Sentinel's URL serve the cache; collections then stay in files."""

logger = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


class OwnIndex:
    """The one index of this process, which every checkpoint that it serves shares.

    Everything is asked in a thread of its own, by ``run``.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self._thread = ThreadPoolExecutor(1, "index")
        self._opened: Collections | None = None

    def __del__(self) -> None:
        # What is under way may hold the last reference, and let go of it in the thread itself.
        with suppress(RuntimeError):
            self._thread.shutdown(wait=True)
        if self._opened is not None:
            self._opened.close()

    def collections(self, digest: str, dimension: int) -> Collections:
        """All that it holds, for vectors of a model; opened as soon as that is possible.

        Raises Unavailable.
        """
        if self._opened is None:
            self._opened = open_index(self._settings, digest, dimension)
        return self._opened.of_model(digest, dimension)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await threads.run(self._thread, "index", function, *args, **kwargs)


def _scheme(settings: Settings) -> str:
    return (settings.redis_url or "").partition("://")[0]


def may_use_redis(settings: Settings) -> bool:
    """Whether collections are kept in Redis if it has vector sets; else they are kept in files."""
    return _scheme(settings) in ONE_SERVER


def open_index(settings: Settings, digest: str, dimension: int) -> Collections:
    """The collections, for vectors of a model.

    Raises Unavailable while Redis does not answer: it may hold collections, and files beside it
    would hold others of the same names.
    """
    if settings.redis_url and may_use_redis(settings):
        client = connect(settings.redis_url)
        if has_vector_sets(client):
            return VectorSets(client, digest, dimension)
        client.close()
        reason = "the Redis of redis_url has no vector sets, which came with version 8"
    else:
        reason = f"redis_url is {_scheme(settings)}://, and vector sets are used on one server"
    if settings.redis_url:
        logger.warning("%s: collections are kept in %s instead", reason, settings.index_dir)
    return EmbeddedCollections(settings.index_dir, digest, dimension)
