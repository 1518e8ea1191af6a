"""A circuit breaker: what keeps failing is left alone, and tried in the background alone."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from prometheus_client import Gauge

FAILURES = 3
"""In a row, after which nothing more is tried."""
PROBE_S = 1.0
"""Between two tries in the background."""

logger = logging.getLogger(__name__)


class Breaker:
    """``closed``: go ahead, which ``shown`` says as 1. ``what`` names it in the log.

    For one event loop.
    """

    def __init__(self, what: str, probe: Callable[[], Awaitable[object]], shown: Gauge):
        self._shown = shown
        self._set(closed=True)
        self._what = what
        self._probe = probe
        self._failures = 0
        self._healing: asyncio.Task[None] | None = None

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self, error: BaseException) -> None:
        """Count a failure; the last one too many opens it, and starts the tries to heal."""
        self._failures += 1
        if self.closed and self._failures >= FAILURES:
            self._set(closed=False)
            reason = str(error) or type(error).__name__
            logger.warning("%s: %s; going on without it", self._what, reason)
            self._healing = asyncio.create_task(self._heal())

    async def _heal(self) -> None:
        while not self.closed:
            await asyncio.sleep(PROBE_S)
            try:
                await self._probe()
            except Exception:
                logger.debug("%s: still failing", self._what, exc_info=True)
            else:
                self._set(closed=True)
                self._failures = 0
                logger.warning("%s: works again", self._what)

    def _set(self, closed: bool) -> None:
        self.closed = closed
        self._shown.set(closed)

    def close(self) -> None:
        """Stop trying."""
        if self._healing is not None:
            self._healing.cancel()
