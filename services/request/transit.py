"""Bodies and replies in transit: their bytes in this process, their pace, work on large ones."""

import asyncio
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from time import monotonic
from typing import TYPE_CHECKING, Any, Self, TypeVar

from samclip_core.errors import ImageTooLarge, Overloaded, RequestTooSlow
from services.batching.priority import Priority
from services.batching.threads import Places, Threads
from services.observability import metrics

if TYPE_CHECKING:  # ``samclip --local`` does without
    from starlette.types import Message as Event
    from starlette.types import Receive, Send

T = TypeVar("T")

MAX_AT_ONCE = 256
"""Bodies that a replica may receive at once. Serve's limit on ongoing requests includes it, so that
slow uploads take no slots from complete requests."""
MAX_BODIES = 2
"""Bodies of ``max_request_bytes`` that a replica may hold at once until they are parsed."""
GRACE_S = 10.0
"""Time without a byte taken after which a reply may be cut to make room for others."""
LOOK_S = 1.0
"""Interval between two looks at the bytes that a reader has not taken yet."""


class Reserved:
    """The bytes that one request holds of a budget, until the end of a ``with`` block."""

    def __init__(self, budget: "Budget", key: str):
        self.budget, self.key = budget, key
        self.bytes = 0
        self.cut_off = False  # to make room for others
        self._cut: Callable[[], object] | None = None
        self._moved = 0.0
        self._next_look: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self.budget.enter(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._end_looks()
        self.budget.leave(self)

    def hold(self, size: int) -> None:
        """Hold more bytes. Raises Overloaded without room, RequestTooSlow if the reply was cut."""
        self.budget.resize(self, self.bytes + size)

    def set(self, size: int) -> None:
        """Hold so many bytes from now on. Raises as ``hold`` does."""
        self.budget.resize(self, size)

    async def wait(self, size: int, priority: Priority) -> None:
        """Hold bytes once there is room; one waits for it at a time. Raises Overloaded if never."""
        async with self.budget.turn.held(priority):
            while True:
                self.budget.freed.clear()
                try:
                    return self.hold(size)
                except Overloaded:
                    if size > self.budget.most_for(self.key):
                        raise
                await self.budget.freed.wait()

    def begin_sending(
        self, cut: Callable[[], object], untaken: Callable[[], int] | None = None
    ) -> None:
        """Note that a reader takes the bytes from now on; ``cut`` closes its connection.

        It is called on this event loop, and so is ``untaken``, which returns how many bytes wait
        for the reader: a part of a reply is sent long before a slow one has taken it.
        """
        loop = asyncio.get_running_loop()
        self._cut, self._moved = lambda: loop.call_soon_threadsafe(cut), monotonic()
        if untaken is not None:
            self._next_look = loop.call_later(LOOK_S, self._look, untaken, untaken())

    def _look(self, untaken: Callable[[], int], before: int) -> None:
        if (left := untaken()) != before:
            self.note_progress()
        loop = asyncio.get_running_loop()
        self._next_look = loop.call_later(LOOK_S, self._look, untaken, left)

    def _end_looks(self) -> None:
        if self._next_look is not None:
            self._next_look.cancel()

    def note_progress(self) -> None:
        """Note that the reader has taken some bytes."""
        self._moved = monotonic()

    def end_sending(self) -> None:
        """Note that the reader has taken all: the next part is made, and nobody waits for it.

        Raises RequestTooSlow if the reply was cut.
        """
        self._cut = None
        self._end_looks()
        self.set(0)

    def idle_s(self) -> float:
        """Return for how long the reader has taken nothing; 0 while there is none."""
        return monotonic() - self._moved if self._cut else 0.0

    def cut(self) -> None:
        """Close the connection of the reader."""
        if self._cut is not None:
            self._cut()


class Budget:
    """Limits on requests at once, and on the bytes that they hold together. Thread-safe.

    ``what`` names them in errors. An API key, by its name, holds at most half of the bytes. Up to
    ``free`` bytes of one request are never refused. A reply that nobody takes is cut when its bytes
    are needed.
    """

    def __init__(self, what: str, most_bytes: int, most: int = MAX_AT_ONCE, free: int = 0):
        self.what, self.most_bytes, self.most, self.free = what, most_bytes, most, free
        self.number = self.bytes = 0
        self.turn, self.freed = Places("room", 1), asyncio.Event()
        self._bytes_of = Counter[str]()
        self._reserved = dict[Reserved, None]()
        self._lock = threading.RLock()

    def reserve(self, key: str = "") -> Reserved:
        """Return no bytes yet, to be entered: Overloaded if too many requests have."""
        return Reserved(self, key)

    def enter(self, reserved: Reserved) -> None:
        """Count one more request. Raises Overloaded if there are too many."""
        with self._lock:
            if self.number >= self.most:
                raise Overloaded(f"there are {self.most} {self.what} already: try again later")
            self.number += 1
            self._reserved[reserved] = None

    def leave(self, reserved: Reserved) -> None:
        """Give back what a request holds; a second time does nothing."""
        with self._lock:
            if reserved not in self._reserved:
                return
            del self._reserved[reserved]
            self.number -= 1
            self._change(reserved, -reserved.bytes)

    def resize(self, reserved: Reserved, size: int) -> None:
        """Change the bytes of a reservation. Raises the errors of ``Reserved.hold``."""
        with self._lock:
            if reserved.cut_off:
                raise RequestTooSlow("the reply was not read, and others needed its memory")
            more = size - reserved.bytes
            if more > 0 and size > self.free:
                self._make_room(more, reserved.key)
            if reserved in self._reserved:
                self._change(reserved, more)

    def most_for(self, key: str) -> int:
        """Return the most bytes that requests with this API key, or without one, hold."""
        return self.most_bytes // 2 if key else self.most_bytes

    def _make_room(self, more: int, key: str) -> None:
        """Cut unread replies, those that wait longest first, or none if that is not enough."""
        beyond = self.bytes + more - self.most_bytes
        beyond_of_key = self._bytes_of[key] + more - self.most_for(key)
        cut = dict[Reserved, None]()
        while beyond > 0 or beyond_of_key > 0:
            rivals = (one for one in self._reserved if one.key == key or beyond_of_key <= 0)
            idle = max((one for one in rivals if one not in cut), key=Reserved.idle_s, default=None)
            if idle is None or idle.idle_s() < GRACE_S:
                metrics.SHED.labels("no_room").inc()
                raise Overloaded(
                    f"{self.what} hold {self.bytes:,} bytes, at most {self.most_bytes:,} in all "
                    f"and {self.most_for(key):,} with one API key: try again later, or ask for "
                    "less at once"
                )
            cut[idle] = None
            beyond -= idle.bytes
            beyond_of_key -= idle.bytes * (idle.key == key)
        for one in cut:
            self._drop(one)

    def _drop(self, reserved: Reserved) -> None:
        """Cut a reply. Its bytes no longer count, although its connection closes a moment later."""
        metrics.SHED.labels("unread").inc()
        reserved.cut_off = True
        self.leave(reserved)
        reserved.cut()

    def _change(self, reserved: Reserved, more: int) -> None:
        reserved.bytes += more
        self.bytes += more
        self._bytes_of[reserved.key] += more
        if more < 0:
            self.freed.set()


REPLIES = Budget("replies in progress", 2**29, sys.maxsize, free=256 * 1024)
"""The replies of this process over HTTP and gRPC. Small ones are limited by their number."""

PARSERS, RENDERERS = Threads("parse", 2), Threads("render", 2)
"""The threads that parse large bodies and make large replies, which take several times their size
meanwhile: a request that waits costs nothing once its deadline passes."""
ASIDE = Threads("aside")
"""The threads that convert what is small, beside the event loop and the large ones."""
PIECE = 256 * 1024
"""Bytes of a reply that are sent at once: the server holds no more than one unread piece."""


@dataclass(frozen=True)
class Pace:
    """The slowest transfer that is accepted; a slower one would hold its slot in the replica."""

    most_s: float = 60.0
    least_bytes_per_s: float = 16_000.0
    head_start_s: float = 10.0  # for a connection that stalls briefly

    def allowed_s(self, received: int) -> float:
        """Return the seconds of waiting allowed in all once ``received`` bytes have passed."""
        return min(self.most_s, self.head_start_s + received / self.least_bytes_per_s)

    def __str__(self) -> str:
        return f"{self.most_s:g} seconds and {self.least_bytes_per_s:,.0f} bytes per second"


PACE = Pace()


@dataclass
class Transfer:
    """The bytes of a transfer that have passed, and the time spent waiting for the caller."""

    pace: Pace
    bytes: int = 0
    waited_s: float = 0.0

    @asynccontextmanager
    async def wait(self, what: str) -> AsyncIterator[None]:
        """Wait for the caller within the pace. Raises RequestTooSlow about ``what``."""
        start = monotonic()
        try:
            async with asyncio.timeout(self.pace.allowed_s(self.bytes) - self.waited_s):
                yield
        except TimeoutError as error:
            raise RequestTooSlow(
                f"the {what} is too slow: {self.bytes:,} bytes arrived in the time allowed; the "
                f"limits are {self.pace}: send less at once, or use a faster connection"
            ) from error
        finally:
            self.waited_s += monotonic() - start


async def parsed(priority: Priority, chunks: Sequence[bytes], work: Callable[[], T]) -> T:
    """Return ``work()``, which parses a body. If several are large, they take turns."""
    return await (PARSERS if len(chunks) > 1 else ASIDE).run(priority, "parse", work)


async def rendered(priority: Priority, size: int, work: Callable[[], T]) -> T:
    """Return ``work()``, which makes a reply of about ``size`` bytes. Large ones take turns."""
    return await (RENDERERS if size > PIECE else ASIDE).run(priority, "render", work)


async def aside(priority: Priority, work: Callable[..., T], *args: Any) -> T:
    """Return ``work(…)``, which converts a part of a request or of its reply, from a thread."""
    return await ASIDE.run(priority, "parse", work, *args)


def paced(send: "Send", pace: Pace, reserved: Reserved) -> "Send":
    """Wrap ``send`` to return once the caller has taken a body, all but its last piece.

    ``reserved`` holds the bytes of the reply. Raises RequestTooSlow for a caller that reads more
    slowly than the pace, or whose reply was cut.
    """
    transfer = Transfer(pace)

    async def send_all(event: "Event") -> None:
        body = event.get("body", b"")
        pieces: Iterable[Event] = [event]
        if len(body) > PIECE:  # the server takes the last, empty one once it has sent the others
            # Copies: for a view that is not sent, the connection would keep the whole reply.
            cuts = (body[at : at + PIECE] for at in range(0, len(body), PIECE))
            pieces = ({**event, "body": cut, "more_body": True} for cut in cuts)
            if not event.get("more_body"):
                pieces = chain(pieces, [{**event, "body": b""}])
        for piece in pieces:
            async with transfer.wait("reader of the reply"):
                await send(piece)
            transfer.bytes += len(piece.get("body", b""))
            reserved.note_progress()

    return send_all


def limited(receive: "Receive", most_bytes: int, pace: Pace) -> "Receive":
    """Wrap ``receive`` to enforce a maximum size and a minimum pace.

    Only the time spent waiting for the caller counts, not the time spent processing its bytes.
    Raises ImageTooLarge and RequestTooSlow, and CancelledError if the caller disconnects.
    """
    transfer = Transfer(pace)

    async def next_event() -> "Event":
        async with transfer.wait("body"):
            event = await receive()
        if event["type"] == "http.disconnect":
            raise asyncio.CancelledError
        transfer.bytes += len(event.get("body", b""))
        if transfer.bytes > most_bytes:
            raise ImageTooLarge(f"the body has more than {most_bytes:,} bytes: send less at once")
        return event

    return next_event
