"""Limits on bodies in transit: their pace, how many arrive at once, how many bytes those hold."""

import asyncio
import contextvars
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import TypeVar

from starlette.types import Message as Event
from starlette.types import Receive, Send

from samclip_core.errors import ImageTooLarge, Overloaded, RequestTooSlow

MAX_ARRIVING = 256
"""Bodies that a replica may receive at once. Serve's limit on ongoing requests includes it, so that
slow uploads take no slots from complete requests."""
MAX_BODIES = 2
"""Bodies of ``max_request_bytes`` that a replica may hold at once until they are parsed."""
PARSERS = ThreadPoolExecutor(2, "parse")
"""The threads that parse large bodies: a body that waits costs nothing once its deadline passes."""
PIECE = 256 * 1024
"""Bytes of a reply that are sent at once: the server holds no more than one unread piece."""

T = TypeVar("T")


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


class Arrivals:
    """The uploads in progress to one application, or to one gRPC server; ``what`` names them."""

    def __init__(
        self,
        most_bytes: int = MAX_BODIES * 2**28,
        most: int = MAX_ARRIVING,
        pace: Pace = PACE,
        what: str = "request bodies",
        most_of_key: int | None = None,
    ):
        """``most_of_key``: the most slots of one API key; None: all."""
        self.most_bytes, self.most, self.pace, self.what = most_bytes, most, pace, what
        self.most_of_key = most if most_of_key is None else most_of_key
        self.number = self.bytes = 0
        self._number_of, self._bytes_of = Counter[str](), Counter[str]()

    @contextmanager
    def place(self, key: str = "") -> Iterator[Callable[[int], None]]:
        """Hold a slot, and the bytes that the yielded function is called with, for one body.

        An API key, by its name, holds at most half of the bytes. Both raise Overloaded if there is
        no room.
        """
        most_of_key = self.most_bytes // 2 if key else self.most_bytes
        if self.number >= self.most:
            raise Overloaded(f"{self.most} {self.what} are arriving already: try again later")
        if key and self._number_of[key] >= self.most_of_key:
            raise Overloaded(
                f"{self.most_of_key} {self.what} with one API key are arriving already, of "
                f"{self.most} for all: try again later"
            )
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            of_key = self._bytes_of[key]
            if self.bytes + size > self.most_bytes or of_key + size > most_of_key:
                raise Overloaded(
                    f"{self.what} that are arriving hold {self.bytes:,} bytes, at most "
                    f"{self.most_bytes:,} in all and {most_of_key:,} with one API key: try again "
                    "later, or send less at once"
                )
            self.bytes += size
            self._bytes_of[key] += size
            held += size

        self.number += 1
        self._number_of[key] += 1
        try:
            yield hold
        finally:
            self.number -= 1
            self._number_of[key] -= 1
            self.bytes -= held
            self._bytes_of[key] -= held


async def parsed(chunks: Sequence[bytes], work: Callable[[], T]) -> T:
    """Return ``work()``, which parses a body. If several are large, they take turns."""
    if len(chunks) < 2:
        return await asyncio.to_thread(work)
    run = contextvars.copy_context().run
    return await asyncio.get_running_loop().run_in_executor(PARSERS, run, work)


def taken(send: Send, pace: Pace) -> Send:
    """Wrap ``send`` to return once the caller has taken a body, all but its last piece.

    Raises RequestTooSlow for a caller that reads more slowly than the pace.
    """
    transfer = Transfer(pace)

    async def send_all(event: Event) -> None:
        body = memoryview(event.get("body", b""))
        pieces = [event]
        if len(body) > PIECE:  # the server takes the last, empty one once it has sent the others
            starts = range(0, len(body), PIECE)
            pieces = [{**event, "body": body[at : at + PIECE], "more_body": True} for at in starts]
            pieces += [] if event.get("more_body") else [{**event, "body": b""}]
        for piece in pieces:
            async with transfer.wait("reader of the reply"):
                await send(piece)
            transfer.bytes += len(piece.get("body", b""))

    return send_all


def limited(receive: Receive, most_bytes: int, pace: Pace) -> Receive:
    """Wrap ``receive`` to enforce a maximum size and a minimum pace.

    Only the time spent waiting for the caller counts, not the time spent processing its bytes.
    Raises ImageTooLarge and RequestTooSlow, and CancelledError if the caller disconnects.
    """
    transfer = Transfer(pace)

    async def next_event() -> Event:
        async with transfer.wait("body"):
            event = await receive()
        if event["type"] == "http.disconnect":
            raise asyncio.CancelledError
        transfer.bytes += len(event.get("body", b""))
        if transfer.bytes > most_bytes:
            raise ImageTooLarge(f"the body has more than {most_bytes:,} bytes: send less at once")
        return event

    return next_event
