"""Bodies and replies in transit: their pace, and the work on large ones."""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from time import monotonic
from typing import TypeVar

from starlette.types import Message as Event
from starlette.types import Receive, Send

from samclip_core.errors import ImageTooLarge, RequestTooSlow
from services.request.room import Place

PARSERS, RENDERERS = ThreadPoolExecutor(2, "parse"), ThreadPoolExecutor(2, "render")
"""The threads that parse large bodies and make large replies, which take several times their size
meanwhile: a request that waits costs nothing once its deadline passes."""
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


async def parsed(chunks: Sequence[bytes], work: Callable[[], T]) -> T:
    """Return ``work()``, which parses a body. If several are large, they take turns."""
    return await _aside(PARSERS if len(chunks) > 1 else None, work)


async def rendered(size: int, work: Callable[[], T]) -> T:
    """Return ``work()``, which makes a reply of about ``size`` bytes. Large ones take turns."""
    return await _aside(RENDERERS if size > PIECE else None, work)


async def _aside(pool: Executor | None, work: Callable[[], T]) -> T:
    run = contextvars.copy_context().run
    return await asyncio.get_running_loop().run_in_executor(pool, run, work)


def taken(send: Send, pace: Pace, place: Place) -> Send:
    """Wrap ``send`` to return once the caller has taken a body, all but its last piece.

    ``place`` holds the bytes of the reply. Raises RequestTooSlow for a caller that reads more
    slowly than the pace, or whose place was cut.
    """
    transfer = Transfer(pace)

    async def send_all(event: Event) -> None:
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
            place.moved()

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
