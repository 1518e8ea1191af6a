"""Admission: whether one more item can be queued and done before its deadline."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from samclip_core.errors import DeadlineExceeded, Overloaded
from services.batching.queue import Queue
from services.observability import metrics
from services.request.context import Priority

URGENT = 8
"""Places in the queue reserved for interactive items: this many or a batch, at most half of it."""
SLACK = 1.5
"""Safety factor on the expected wait: an item that misses its deadline wastes device time."""
LATEST = 0.2
"""Weight of the newest batch in the moving average of the time per work."""


class Admission:
    """Knows the items in the queue and those ``coming``, and measures the pace of the device."""

    def __init__(self, queue: Queue[Any, Any], max_queue: int):
        self.coming: list[float] = []  # work of the items that are being prepared
        self.running: list[float] = []  # work of the batches on the device
        self.pace_s = 0.0  # device time per work of 1
        self._queue = queue
        self._max_queue = max_queue
        self._turn = 0.0  # when the device last began to work, or ended a batch

    def check(self, priority: Priority, work: float, max_size: int) -> None:
        """Check whether one more item can be queued, beside batches of up to ``max_size``.

        Raises Overloaded if the queue is full or the wait too long. Raises DeadlineExceeded if the
        time left is too short even for an empty queue, so that a retry could not succeed either.
        """
        now = monotonic()
        left_s = priority.deadline - now
        if left_s <= 0:
            raise self._too_late(left_s)
        spare = min(max(max_size, URGENT), self._max_queue // 2) if priority.bulk else 0
        room = self._max_queue - spare
        self._queue.drop()  # cancelled items make room
        if len(self.coming) + len(self._queue) >= room:
            metrics.SHED.labels("queue_full").inc()
            raise Overloaded(f"{room} requests are waiting already: try again in a second")
        wait_s = SLACK * self._expected_s(now, priority, work)
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
    def preparing(self, work: float) -> Iterator[None]:
        """Count one item as coming."""
        self.coming.append(work)
        try:
            yield
        finally:
            self.coming.remove(work)

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

    def _expected_s(self, now: float, priority: Priority, work: float) -> float:
        """Return the time until one more item would be done; 0 if the device is idle."""
        waiting = sum(self.coming) + self._queue.work_before(now, priority)
        running_s = max(0.0, sum(self.running) * self.pace_s - (now - self._turn))
        return running_s + self.pace_s * (waiting + work) if waiting or running_s else 0.0
