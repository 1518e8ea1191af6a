"""Limits on sessions: rpcs whose callers send a stream of messages."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from google.protobuf.message import Message

from samclip_core.errors import DeadlineExceeded, InvalidRequest, Overloaded
from services.observability import metrics

IDLE_S = 300.0
"""Longest wait for the next message. A session holds one of the places of its caller's API key."""
LONGEST_S = 3600.0
"""Longest session, so that an old checkpoint or a stopped replica is released in the end."""
MAX_MESSAGES = 1000
"""Messages in one session. Each counts as a request of its API key, the first with the session."""
MAX_SESSIONS = 64
"""Sessions of a replica at once: a quarter of its requests, since most of them only wait."""

Request = TypeVar("Request", bound=Message)


class Sessions:
    """The open sessions of a replica. For one event loop."""

    def __init__(self) -> None:
        self._open = 0

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Count a session as open. Raises Overloaded if there are MAX_SESSIONS already."""
        if self._open >= MAX_SESSIONS:
            metrics.SHED.labels("sessions").inc()
            raise Overloaded(f"{MAX_SESSIONS} sessions are open already: try again later")
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1


async def within_limits(
    messages: AsyncIterator[Request], counted: Callable[[], Awaitable[None]]
) -> AsyncIterator[Request]:
    """Yield the messages of a session, each after the first once it is ``counted``.

    Raises DeadlineExceeded if the next one takes longer than IDLE_S, InvalidRequest if there are
    more than MAX_MESSAGES, and the errors of ``counted``.
    """
    count = 0
    while True:
        try:
            async with asyncio.timeout(IDLE_S):
                message = await anext(messages)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            metrics.SHED.labels("idle").inc()
            raise DeadlineExceeded(
                f"no message for {IDLE_S:g} seconds: open another session, with the image's key"
            ) from error
        count += 1
        if count > MAX_MESSAGES:
            raise InvalidRequest(
                f"a session takes at most {MAX_MESSAGES:,} messages: open another one, with the "
                "image's key"
            )
        if count > 1:
            await counted()
        yield message
