"""Admission: whether one more item can be queued and done before its deadline."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from samclip_core.errors import DeadlineExceeded, Overloaded
from services.observability import metrics
from services.request.context import Priority

URGENT = 8
"""Places in the queue reserved for interactive items: this many or a batch, at most half of it."""
SLACK = 1.5
"""Safety factor on the expected wait: an item that misses its deadline wastes device time."""
LATEST = 0.2
"""Weight of the newest batch in the moving average of the time per work."""


class Admission:
    """Knows the items that are ``coming``, and measures the pace of the device."""

    def __init__(self, max_queue: int):
        self.coming: list[float] = []  # work of the items that are being prepared
        self.pace_s = 0.0  # device time per work of 1
        self.running: list[float] = []  # work of the batches on the device
        self._max_queue = max_queue
        self._turn = 0.0  # when the device last began to work, or ended a batch

    def check(
        self, priority: Priority, work: float, queued: int, work_before: float, reserved: int
    ) -> None:
        """Check one more item beside ``queued`` ones. Raises the errors of ``Queue.admit``.

        ``work_before`` is that of the queued items that would run before it. ``reserved`` places of
        the queue, but at most half, are for interactive items.
        """
        now = monotonic()
        left_s = priority.deadline - now
        if left_s <= 0:
            raise self._too_late(left_s)
        room = self._max_queue - (min(reserved, self._max_queue // 2) if priority.bulk else 0)
        if len(self.coming) + queued >= room:
            metrics.SHED.labels("queue_full").inc()
            raise Overloaded(f"{room} requests are waiting already: try again in a second")
        waiting = sum(self.coming) + work_before
        running_s = max(0.0, sum(self.running) * self.pace_s - (now - self._turn))
        if not waiting and not running_s:
            return  # the device is idle
        wait_s = SLACK * (running_s + self.pace_s * (waiting + work))
        if wait_s <= left_s:
            return
        if SLACK * self.pace_s * work > left_s:
            raise self._too_late(left_s)
        metrics.SHED.labels("no_time").inc()
        raise Overloaded(
            f"the deadline is in {left_s:.1f} s, but the queue takes about {wait_s:.1f} s: "
            "try again later, or with a later deadline"
        )

    def _too_late(self, left_s: float) -> DeadlineExceeded:
        metrics.SHED.labels("expired").inc()
        return DeadlineExceeded(
            f"{max(left_s, 0.0):.2g} s are left until the deadline, which is too short: "
            "set a later deadline"
        )

    @contextmanager
    def timed(self, work: float) -> Iterator[None]:
        """Update the average device time per work with a batch."""
        if not self.running:
            self._turn = monotonic()
        self.running.append(work)
        try:
            yield
            pace_s = (monotonic() - self._turn) / work
            self.pace_s += (LATEST if self.pace_s else 1) * (pace_s - self.pace_s)
        finally:
            self.running.remove(work)
            self._turn = monotonic()
