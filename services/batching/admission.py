"""Admission: whether one more item can be queued and done before its deadline."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from time import monotonic

from samclip_core.errors import DeadlineExceeded, Overloaded
from services.batching.priority import Priority
from services.observability import metrics

URGENT = 8
"""Places in the queue reserved for interactive items: this many or a batch, at most half of it."""
SLACK = 1.5
"""Safety factor on the expected wait: an item that misses its deadline wastes device time."""
PATIENCE_S = 5.0
"""Bulk items that have waited this long count as interactive, so that they never starve."""
LATEST_WEIGHT = 0.2
"""Weight of the newest batch in the moving average of the time per work."""


RESTED_S = 5.0
"""A lower value replaces an average older than this: otherwise, after one slow run, the work that
would measure again could be refused for ever."""


def moving_average(average: float, latest: float, age_s: float = 0.0) -> float:
    """Return the moving average, 0 for none, after one more value; ``age_s`` is its age."""
    anew = not average or (age_s > RESTED_S and latest < average)
    return latest if anew else average + LATEST_WEIGHT * (latest - average)


@dataclass(eq=False, repr=False)
class Claim:
    """A claim to the device: ``work`` is its share of the device's time.

    ``begun`` is when the work began of which this is a later step, or 0 for a first step.
    """

    work: float
    priority: Priority
    _: KW_ONLY
    begun: float = 0.0
    since: float = field(default_factory=lambda: monotonic())

    @property
    def lane(self) -> tuple[str, bool]:
        """A tenant has two lanes, each with its own turns: of first steps, and of later ones."""
        return self.priority.tenant, self.begun > 0

    def yields(self, now: float) -> bool:
        """Return whether interactive items go first."""
        return self.priority.bulk and now - (self.begun or self.since) < PATIENCE_S


class Turns:
    """Tenants take turns: the next item is that of the tenant who has had the least work done.

    A tenant that had nothing to do has not saved up turns for later. Its later steps take turns
    with its other items, and the work that began first is finished first: otherwise all works of
    an overloaded device would end too late, instead of some.
    """

    def __init__(self) -> None:
        self._done: dict[tuple[str, bool], float] = {}  # by lane, where it is more than ``_least``
        self._least = 0.0

    def order(self, claim: Claim, now: float) -> tuple[bool, float, float]:
        """Return the key by which claims are sorted; equal ones run in the order of arrival."""
        return claim.yields(now), self._done_for(claim), claim.begun

    def took(self, claims: Sequence[Claim]) -> None:
        """Note the work of the claims whose turn it is."""
        self._least = max(self._least, min(map(self._done_for, claims)))
        for claim in claims:
            self.add(claim, claim.work)
        self._done = {lane: done for lane, done in self._done.items() if done > self._least}

    def add(self, claim: Claim, work: float) -> None:
        """Note work that was done for the tenant of a claim."""
        self._done[claim.lane] = self._done_for(claim) + work

    def _done_for(self, claim: Claim) -> float:
        return max(self._least, self._done.get(claim.lane, 0.0))


class Admission:
    """Knows the items that will come, and measures the pace of the device."""

    def __init__(self, max_queue: int):
        self.coming: list[Claim] = []  # items that are being prepared
        self.rests: list[Claim] = []  # of works in pieces, what is not submitted yet
        self.pace_s = 0.0  # device time per work of 1
        self.running: list[float] = []  # work of the batches on the device
        self._max_queue = max_queue
        self._turn = 0.0  # when the device last began to work, or ended a batch

    def check(
        self, claim: Claim, queued: Sequence[Claim], reserved: int, slack: float = SLACK
    ) -> None:
        """Check one more item beside ``queued`` ones. Raises the errors of ``Queue.admit``.

        ``reserved`` places of the queue, but at most half, are for interactive items. ``slack`` is
        the safety factor.
        """
        now = monotonic()
        left_s = claim.priority.deadline - now
        if left_s <= 0:
            raise self._too_late(left_s)
        if not (claim.begun or queued or self.running or self.coming or self.rests):
            return  # the device is idle
        others = [*self.coming, *queued]
        self._check_room(claim.priority, others, reserved)
        waiting = _work_before(claim, [*others, *self.rests], now)
        running_s = max(0.0, sum(self.running) * self.pace_s - (now - self._turn))
        if not waiting and not running_s:  # the device is idle
            if not claim.begun:
                return
            slack = 1.0
        wait_s = slack * (running_s + self.pace_s * (waiting + claim.work))
        if wait_s <= left_s:
            return
        if (1 if claim.begun else SLACK) * self.pace_s * claim.work > left_s:
            raise self._too_late(left_s, self.pace_s * claim.work * bool(claim.begun))
        metrics.SHED.labels("no_time").inc()
        raise Overloaded(
            f"the deadline is in {left_s:.1f} s, but the queue takes about {wait_s:.1f} s: "
            "try again later, or with a later deadline"
        )

    def _check_room(self, priority: Priority, others: Sequence[Claim], reserved: int) -> None:
        """Raise Overloaded if all places are taken, unless a tenant has less than its part."""
        room = self._max_queue - (min(reserved, self._max_queue // 2) if priority.bulk else 0)
        if len(others) < room:
            return
        held = Counter(other.priority.tenant for other in others)
        if held[priority.tenant] >= room // len(held.keys() | {priority.tenant}):
            metrics.SHED.labels("queue_full").inc()
            raise Overloaded(f"{room} requests are waiting already: try again in a second")

    def _too_late(self, left_s: float, needed_s: float = 0.0) -> DeadlineExceeded:
        """Return the error of one item, or of work in pieces that takes ``needed_s``."""
        metrics.SHED.labels("expired").inc()
        needed = f" for {needed_s:,.0f} s of work" if needed_s else ""
        advice = "send less at once, or " if needed_s else ""
        return DeadlineExceeded(
            f"{max(left_s, 0.0):.2g} s are left until the deadline, which is too short{needed}: "
            f"{advice}set a later deadline"
        )

    @contextmanager
    def timed(self, work: float, paced: bool = True) -> Iterator[None]:
        """Update the average device time per work with a batch, if its work is ``paced``."""
        age_s = monotonic() - self._turn
        if not self.running:
            self._turn = monotonic()
        self.running.append(work)
        try:
            yield
            if paced:
                self.pace_s = moving_average(self.pace_s, (monotonic() - self._turn) / work, age_s)
        finally:
            self.running.remove(work)
            self._turn = monotonic()


def _work_before(claim: Claim, others: Sequence[Claim], now: float) -> float:
    """Return the work that is done before a claim's turn.

    It is that of its own lane, and at most as much for each of the others.
    """
    same, sooner, bulk = defaultdict[tuple[str, bool], float](float), 0.0, claim.yields(now)
    for other in others:
        if other.lane == claim.lane and other.begun > claim.begun:
            continue
        if other.yields(now) == bulk:
            same[other.lane] += other.work
        elif bulk:
            sooner += other.work
    own = same.pop(claim.lane, 0.0)
    return sooner + own + sum(min(work, own + claim.work) for work in same.values())
