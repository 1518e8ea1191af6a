"""A circuit breaker: stop calling a backend that keeps failing, and probe it in the background."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from prometheus_client import Gauge

FAILURES = 3
"""Consecutive failures that open the breaker."""
PROBE_S = 1.0
"""Interval between two probes in the background."""

logger = logging.getLogger(__name__)


class Breaker:
    """A circuit breaker for one event loop. While it is ``closed``, calls are allowed.

    ``what`` is the name in the log; the gauge ``shown`` is 1 while the breaker is closed.
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
        """Count a failure; after FAILURES consecutive ones, open the breaker and start to probe."""
        self._failures += 1
        if self.closed and self._failures >= FAILURES:
            self._set(closed=False)
            reason = str(error) or type(error).__name__
            logger.warning("%s disabled after repeated failures: %s", self._what, reason)
            self._healing = asyncio.create_task(self._heal())

    async def _heal(self) -> None:
        while not self.closed:
            await asyncio.sleep(PROBE_S)
            try:
                await self._probe()
            except Exception:
                logger.debug("%s: probe failed", self._what, exc_info=True)
            else:
                self._set(closed=True)
                self._failures = 0
                logger.warning("%s enabled again", self._what)

    def _set(self, closed: bool) -> None:
        self.closed = closed
        self._shown.set(closed)

    def close(self) -> None:
        """Stop probing."""
        if self._healing is not None:
            self._healing.cancel()
