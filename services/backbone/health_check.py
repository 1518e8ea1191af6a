"""A health check of the device: an occasional small run, with a short wait for the result."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import monotonic

from samclip_core.errors import Unavailable

EVERY_S = 10.0
"""A device that has worked this recently is not tested."""
ANSWER_S = 0.5
"""How long one check waits: health checks have short time-outs."""
WEDGED_S = 60.0
"""A test that takes this long is not waiting behind other work: the device hangs."""

logger = logging.getLogger(__name__)


class HealthCheck:
    """Tests a device with ``run``, a very small piece of work. For one event loop."""

    def __init__(self, run: Callable[[], Awaitable[object]]):
        self._run = run
        self._worked = monotonic()
        self._since = 0.0
        self._trying: asyncio.Future[object] | None = None

    def worked(self) -> None:
        """Record that the device has just completed some work."""
        self._worked = monotonic()

    async def check(self) -> None:
        """Raise Unavailable if the device fails a test or hangs; a busy device is healthy."""
        if self._trying is None and monotonic() - self._worked > EVERY_S:
            self._trying, self._since = asyncio.ensure_future(self._run()), monotonic()
        if self._trying is None:
            return
        trying = self._trying
        await asyncio.wait([trying], timeout=ANSWER_S)
        if not trying.done():
            waited_s = monotonic() - self._since
            if waited_s > WEDGED_S and self._worked < self._since:
                raise Unavailable(f"the model's device has not answered for {waited_s:.0f} s")
            return
        self._trying = None
        if error := trying.exception():
            logger.error("the model's device does not work", exc_info=error)
            raise Unavailable("the model's device does not work: see the service log") from error
        self.worked()
