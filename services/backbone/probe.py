"""Whether the device still works: asked of the device itself, seldom, and never waited for long."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import monotonic

from samclip_core.errors import Unavailable

EVERY_S = 10.0
"""What has worked so lately is not tried again."""
ANSWER_S = 0.5
"""How long one check waits: those who ask for health have little time."""
WEDGED_S = 60.0
"""A try that takes this long does not wait behind other work any more: the device hangs."""

logger = logging.getLogger(__name__)


class Probe:
    """``run`` makes the device do something very small. For one event loop."""

    def __init__(self, run: Callable[[], Awaitable[object]]):
        self._run = run
        self._worked = monotonic()
        self._since = 0.0
        self._trying: asyncio.Future[object] | None = None

    def worked(self) -> None:
        """Say that it has just done something."""
        self._worked = monotonic()

    async def check(self) -> None:
        """Raise Unavailable if the device has failed at a try, or hangs; busy is well."""
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
            raise Unavailable("the model's device does not work: our log says more") from error
        self.worked()
