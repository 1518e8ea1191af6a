"""When the tables of collections are worked on in the background, and when they rest."""

import logging
from collections.abc import Callable, MutableMapping
from functools import partial
from math import inf
from time import monotonic

from samclip_core.errors import Unavailable
from services.retrieval import builds
from services.retrieval.collection import Collection
from services.retrieval.tables import Store, Table, answers

Work = Callable[[], object]
Swept = MutableMapping[str, float]
"""When collections were last searched for what changes have left, by their tables."""

MOST_WORKS = 8
"""Works on a collection without a change in between; before more, it rests for SWEPT_S."""
SWEPT_S = 3600
"""Interval of the searches for what changes have left: old versions, and what was interrupted."""
QUIET_S = 20
"""Time without a change after which a collection's index is completed, and until work that failed
is tried again."""

logger = logging.getLogger(__name__)


class Upkeep:
    """The work on one collection since its last change."""

    def __init__(self, store: Store, found: Collection, swept: Swept) -> None:
        """``swept`` is kept while the collection is not open."""
        self._store, self._found, self._swept, self._changed = store, found, swept, -inf
        self._works, self._has_old = 0, True  # versions
        self._rests_until = self._failed_until = -inf

    def due(self) -> Work | None:
        """Return the next work, if there is some now. Raises Unavailable."""
        now, found = monotonic(), self._found
        if self._changed != found.changed:
            self._changed, self._works, self._rests_until = found.changed, 0, -inf
        if now < max(self._rests_until, self._failed_until):
            return None
        if self._works == MOST_WORKS:
            self._works, self._rests_until = 0, now + SWEPT_S
            return None
        self._works += 1
        busy = now < found.changed + QUIET_S
        with answers():
            for table in found.tables:
                if work := builds.due(table, busy):
                    return partial(self._do, work, table)
        swept = self._swept.get(found.entry.table, -inf)
        if now >= swept + SWEPT_S:
            self._swept[found.entry.table], self._has_old = now, True
            return self._sweep
        left = swept <= found.changed + builds.KEPT.total_seconds()
        rest = swept + SWEPT_S if left or self._has_old else inf
        self._works, self._rests_until = 0, found.changed + QUIET_S if busy else rest
        return None

    def _sweep(self) -> None:
        *_, last = tables = self._found.tables
        self._do(self._found.sweep, last)
        for table in tables:
            self._do(partial(builds.optimize, table), table)
        with answers():  # a backup held them, or this has just made them
            self._has_old = any(len(table.list_versions()) > 1 for table in tables)

    def _do(self, work: Work, table: Table) -> None:
        if not done(self._store, work, table):
            self._failed_until = monotonic() + QUIET_S


def done(store: Store, work: Work, table: Table) -> bool:
    """Work on a table; return False, and log why, if that fails: searches go on."""
    try:
        work()
        store.keep(table)
    except (RuntimeError, OSError, ValueError, Unavailable) as error:
        logger.warning("table %s is not optimised now, searches go on: %s", table.name, error)
        return False
    return True
