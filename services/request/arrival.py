"""How long the bodies of HTTP requests may take to arrive, and how many may be on their way."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

from starlette.types import Message as Event
from starlette.types import Receive

from samclip_core.errors import ImageTooLarge, Overloaded, RequestTooSlow

MAX_ARRIVING = 256
"""Bodies that a replica waits for at once. Serve gives it as many places more than it works on, so
slow callers take none from the requests that are whole."""


@dataclass(frozen=True)
class Pace:
    """The slowest body that is waited for; a slower one would hold its place in a replica."""

    most_s: float = 60.0
    least_bytes_per_s: float = 16_000.0
    head_start_s: float = 10.0  # for a connection that stalls for a moment

    def allowed_s(self, received: int) -> float:
        """Seconds that the wait may have taken once ``received`` bytes are there."""
        return min(self.most_s, self.head_start_s + received / self.least_bytes_per_s)

    def __str__(self) -> str:
        return f"{self.most_s:g} seconds, and {self.least_bytes_per_s:,.0f} bytes per second"


PACE = Pace()


class Arrivals:
    """The bodies that one application waits for."""

    def __init__(self, most: int = MAX_ARRIVING, pace: Pace = PACE):
        self.most, self.pace = most, pace
        self.number = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place while a body is on its way. Raises Overloaded where all are taken."""
        if self.number >= self.most:
            raise Overloaded(f"{self.most} bodies are on their way already: come back later")
        self.number += 1
        try:
            yield
        finally:
            self.number -= 1


def limited(receive: Receive, most_bytes: int, pace: Pace) -> Receive:
    """Receive a body of at most ``most_bytes``, at this pace or a faster one.

    Only the wait for the caller counts, not the time that the work on its bytes takes. Raises
    ImageTooLarge and RequestTooSlow; CancelledError where the caller hangs up.
    """
    received, waited_s = 0, 0.0

    async def next_event() -> Event:
        nonlocal received, waited_s
        start = monotonic()
        try:
            async with asyncio.timeout(pace.allowed_s(received) - waited_s):
                event = await receive()
        except TimeoutError as error:
            raise RequestTooSlow(
                f"the body is too slow: {received:,} bytes arrived, and the rest did not follow "
                f"in time; it has {pace} at least: send less at once, or over a faster connection"
            ) from error
        waited_s += monotonic() - start
        if event["type"] == "http.disconnect":
            raise asyncio.CancelledError
        received += len(event.get("body", b""))
        if received > most_bytes:
            raise ImageTooLarge(f"the body has more than {most_bytes:,} bytes: send less at once")
        return event

    return next_event
