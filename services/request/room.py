"""Room for what a process holds for its requests: bodies that arrive, fetched files, replies."""

import asyncio
import sys
import threading
from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import Self

from samclip_core.errors import Overloaded, RequestTooSlow
from services.observability import metrics

MAX_AT_ONCE = 256
"""Bodies that a replica may receive at once. Serve's limit on ongoing requests includes it, so that
slow uploads take no slots from complete requests."""
MAX_BODIES = 2
"""Bodies of ``max_request_bytes`` that a replica may hold at once until they are parsed."""
GRACE_S = 10.0
"""Time without a byte taken after which a reply may be cut to make room for others."""


class Place:
    """The bytes that one request holds in a room, until the end of a ``with`` block."""

    def __init__(self, room: "Room", key: str):
        self.room, self.key = room, key
        self.bytes = 0
        self.gone = False  # cut, to make room
        self._cut: Callable[[], object] | None = None
        self._moved = 0.0

    def __enter__(self) -> Self:
        self.room.enter(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.room.leave(self)

    def hold(self, size: int) -> None:
        """Hold more bytes. Raises Overloaded without room, RequestTooSlow if the reply was cut."""
        self.room.resize(self, self.bytes + size)

    def become(self, size: int) -> None:
        """Hold so many bytes from now on. Raises as ``hold`` does."""
        self.room.resize(self, size)

    async def wait(self, size: int) -> None:
        """Hold bytes once there is room, in the order of the calls. Raises Overloaded if never."""
        async with self.room.turn:
            while True:
                self.room.freed.clear()
                try:
                    return self.hold(size)
                except Overloaded:
                    if size > self.room.most_for(self.key):
                        raise
                await self.room.freed.wait()

    def sending(self, cut: Callable[[], object]) -> None:
        """Note that a reader takes the bytes from now on; ``cut`` closes its connection.

        It is called on this event loop.
        """
        loop = asyncio.get_running_loop()
        self._cut, self._moved = lambda: loop.call_soon_threadsafe(cut), monotonic()

    def moved(self) -> None:
        """Note that the reader has taken some bytes."""
        self._moved = monotonic()

    def taken(self) -> None:
        """Note that the reader has taken all: the next part is made, and nobody waits for it.

        Raises RequestTooSlow if the reply was cut.
        """
        self._cut = None
        self.become(0)

    def idle_s(self) -> float:
        """Return for how long the reader has taken nothing; 0 while there is none."""
        return monotonic() - self._moved if self._cut else 0.0

    def cut(self) -> None:
        """Close the connection of the reader."""
        if self._cut is not None:
            self._cut()


class Room:
    """Limits on requests at once, and on the bytes that they hold together. Thread-safe.

    ``what`` names them in errors. An API key, by its name, holds at most half of the bytes, and
    ``most_of_key`` places (None: all). A place of up to ``free`` bytes always has room. A reply
    that nobody takes is cut when its bytes are needed.
    """

    def __init__(
        self,
        what: str,
        most_bytes: int,
        most: int = MAX_AT_ONCE,
        most_of_key: int | None = None,
        free: int = 0,
    ):
        self.what, self.most_bytes, self.most, self.free = what, most_bytes, most, free
        self.most_of_key = most if most_of_key is None else most_of_key
        self.number = self.bytes = 0
        self.turn, self.freed = asyncio.Lock(), asyncio.Event()
        self._number_of, self._bytes_of = Counter[str](), Counter[str]()
        self._places = dict[Place, None]()
        self._lock = threading.RLock()

    def place(self, key: str = "") -> Place:
        """Return a place, to be entered. Entering it raises Overloaded if all are taken."""
        return Place(self, key)

    def enter(self, place: Place) -> None:
        """Take a place. Raises Overloaded if there is none."""
        with self._lock:
            if self.number >= self.most:
                raise Overloaded(f"there are {self.most} {self.what} already: try again later")
            if place.key and self._number_of[place.key] >= self.most_of_key:
                raise Overloaded(
                    f"there are {self.most_of_key} {self.what} with one API key already, of "
                    f"{self.most} for all: try again later"
                )
            self.number += 1
            self._number_of[place.key] += 1
            self._places[place] = None

    def leave(self, place: Place) -> None:
        """Give back a place and its bytes; a second time does nothing."""
        with self._lock:
            if place not in self._places:
                return
            del self._places[place]
            self.number -= 1
            self._number_of[place.key] -= 1
            self._change(place, -place.bytes)

    def resize(self, place: Place, size: int) -> None:
        """Change the bytes of a place. Raises the errors of ``Place.hold``."""
        with self._lock:
            if place.gone:
                raise RequestTooSlow("the reply was not read, and others needed its memory")
            more = size - place.bytes
            if more > 0 and size > self.free:
                self._make_room(more, place.key)
            if place in self._places:
                self._change(place, more)

    def most_for(self, key: str) -> int:
        """Return the most bytes that requests with this API key, or without one, hold."""
        return self.most_bytes // 2 if key else self.most_bytes

    def _make_room(self, more: int, key: str) -> None:
        """Cut unread replies, those that wait longest first, or none if that is not enough."""
        beyond = self.bytes + more - self.most_bytes
        beyond_of_key = self._bytes_of[key] + more - self.most_for(key)
        cut = dict[Place, None]()
        while beyond > 0 or beyond_of_key > 0:
            rivals = (one for one in self._places if one.key == key or beyond_of_key <= 0)
            idle = max((one for one in rivals if one not in cut), key=Place.idle_s, default=None)
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

    def _drop(self, place: Place) -> None:
        """Cut a reply. Its bytes no longer count, although its connection closes a moment later."""
        metrics.SHED.labels("unread").inc()
        place.gone = True
        self.leave(place)
        place.cut()

    def _change(self, place: Place, more: int) -> None:
        place.bytes += more
        self.bytes += more
        self._bytes_of[place.key] += more
        if more < 0:
            self.freed.set()


REPLIES = Room("replies that are made or sent", 2**29, sys.maxsize, free=256 * 1024)
"""The replies of this process over HTTP and gRPC. Small ones are limited by their number."""
