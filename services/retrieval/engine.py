"""The index of a process: one thread for all calls, and one for work in the background."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TypeVar

from samclip_core.errors import Overloaded, SamClipError, Unavailable
from services.batching.priority import Priority
from services.batching.threads import Threads
from services.retrieval import older
from services.retrieval.index import Collections
from services.retrieval.registry import Registry
from services.retrieval.rows import Item
from services.settings import Settings

BUILDS = Priority(bulk=True, tenant="+builds")
"""Of looking for work in the background: it takes turns with the items that tenants add."""
BUILD_WORK = 20
"""Work of a build, relative to a small call: items that are added meanwhile are stored first."""
MOST_TOGETHER = 256
"""Items of several requests that are stored together: with their objects, each has up to 1 MiB."""

logger = logging.getLogger(__name__)
T = TypeVar("T")
Add = Callable[[Sequence[Sequence[Item]]], list[int]]


@dataclass(eq=False)
class _Addition:
    """The items of a request, and how many they have replaced once they are stored.

    ``goes_alone``: it was refused together with others.
    """

    items: Sequence[Item]
    replaced: int = -1
    goes_alone: bool = False


class IndexThread:
    """The index of this process, shared by all checkpoints that it serves.

    Use it only in its dedicated thread, through ``run`` and ``add``. Tenants take turns.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self._threads = Threads("index", 1, alike=True)
        self._background = Threads("index builds", 1)
        self._builder: asyncio.Task[None] | None = None
        self._registry: Registry | None = None
        self._additions = defaultdict[Hashable, list[_Addition]](list)

    def __del__(self) -> None:
        # A running call may hold the last reference, and then this thread cannot join itself.
        with suppress(RuntimeError):
            self._threads.close(wait=True)
        self._background.close()
        if self._builder is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._builder.get_loop().call_soon_threadsafe(self._builder.cancel)

    def collections(self, digest: str, dimension: int) -> Collections:
        """Return all collections, for vectors of a model; open the index on first use.

        Raises Unavailable if it cannot be opened; the next call tries again.
        """
        if self._registry is None:
            self._registry = open_index(self._settings)
        return Collections(self._registry, digest, dimension)

    async def run(self, priority: Priority, function: Callable[[], T], work: float = 1) -> T:
        """Call a function; ``work`` is relative to a small one. Raises the errors of a queue."""
        try:
            return await self._threads.submit(priority, "index", function, work)
        finally:
            if self._registry is not None and (self._builder is None or self._builder.done()):
                # An empty context and no reference to this: it is of no request.
                build = _build(self._threads, self._background, self._registry)
                self._builder = asyncio.create_task(build, context=Context())

    async def add(
        self, priority: Priority, alike: Hashable, items: Sequence[Item], add: Add, work: float
    ) -> int:
        """Add items together with those of other calls that wait; return how many were replaced.

        ``add`` takes the items of several calls that are ``alike``. If it fails, each goes alone.
        """
        waiting, ours = self._additions[alike], _Addition(items)
        waiting.append(ours)
        try:
            return await self.run(priority, partial(_add, waiting, ours, add), work)
        finally:
            if ours in waiting:
                waiting.remove(ours)
            if not waiting:
                self._additions.pop(alike, None)


def _add(waiting: list[_Addition], ours: _Addition, add: Add) -> int:
    """Store the items of a call, with those of others if there is room; in the index's thread."""
    if ours.replaced < 0:
        together = [ours] if ours.goes_alone else _fitting(ours, [*waiting])
        try:
            replaced = add([each.items for each in together])
        except SamClipError:
            if len(together) == 1:
                raise
            for each in together:
                each.goes_alone = True
            return _add(waiting, ours, add)
        for each, number in zip(together, replaced, strict=True):
            each.replaced = number
    return ours.replaced


def _fitting(ours: _Addition, waiting: Sequence[_Addition]) -> list[_Addition]:
    """Return an addition with others that are not stored yet, as many as go together."""
    left = [one for one in waiting if one is not ours and one.replaced < 0 and not one.goes_alone]
    counts = accumulate((len(one.items) for one in left), initial=len(ours.items))
    return [
        ours,
        *(one for one, count in zip(left, [*counts][1:], strict=True) if count <= MOST_TOGETHER),
    ]


async def _build(thread: Threads, background: Threads, registry: Registry) -> None:
    """Do work until there is nothing to do; the next call goes on if the queue is full."""
    with suppress(Overloaded, Unavailable, RuntimeError):  # RuntimeError: the thread was shut down
        while work := await thread.submit(BUILDS, "index", registry.due, BUILD_WORK):
            await background.run(BUILDS, "build", work)


def open_index(settings: Settings) -> Registry:
    """Open the index, with what an older version left in its folder. Raises Unavailable."""
    registry = Registry(settings.index_dir)
    older.take_over(registry, settings)
    return registry
