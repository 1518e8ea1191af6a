"""Limits on HTTP bodies in transit: how slowly one may arrive, and how many may arrive at once."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

from starlette.types import Message as Event
from starlette.types import Receive

from samclip_core.errors import ImageTooLarge, Overloaded, RequestTooSlow

MAX_ARRIVING = 256
"""Bodies that a replica may receive at once. Serve's limit on ongoing requests includes it, so that
slow uploads take no slots from complete requests."""


@dataclass(frozen=True)
class Pace:
    """The slowest upload that is accepted; a slower one would hold its slot in the replica."""

    most_s: float = 60.0
    least_bytes_per_s: float = 16_000.0
    head_start_s: float = 10.0  # for a connection that stalls briefly

    def allowed_s(self, received: int) -> float:
        """Return the total seconds of waiting allowed once ``received`` bytes have arrived."""
        return min(self.most_s, self.head_start_s + received / self.least_bytes_per_s)

    def __str__(self) -> str:
        return f"{self.most_s:g} seconds and {self.least_bytes_per_s:,.0f} bytes per second"


PACE = Pace()


class Arrivals:
    """The uploads in progress to one application."""

    def __init__(self, most: int = MAX_ARRIVING, pace: Pace = PACE):
        self.most, self.pace = most, pace
        self.number = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a slot while a body arrives. Raises Overloaded if none is free."""
        if self.number >= self.most:
            raise Overloaded(f"{self.most} request bodies are arriving already: try again later")
        self.number += 1
        try:
            yield
        finally:
            self.number -= 1


def limited(receive: Receive, most_bytes: int, pace: Pace) -> Receive:
    """Wrap ``receive`` to enforce a maximum size and a minimum pace.

    Only the time spent waiting for the caller counts, not the time spent processing its bytes.
    Raises ImageTooLarge and RequestTooSlow, and CancelledError if the caller disconnects.
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
                f"the body is too slow: {received:,} bytes arrived in the time allowed; the limits "
                f"are {pace}: send less at once, or use a faster connection"
            ) from error
        waited_s += monotonic() - start
        if event["type"] == "http.disconnect":
            raise asyncio.CancelledError
        received += len(event.get("body", b""))
        if received > most_bytes:
            raise ImageTooLarge(f"the body has more than {most_bytes:,} bytes: send less at once")
        return event

    return next_event
