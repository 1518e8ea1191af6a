"""Limits on streams: on sessions, whose callers send a stream of messages, and on API keys.

The front door checks a key when a stream begins, and a session may last for an hour. The replica
therefore asks the front door about the key until the stream ends. The front door names the address
for questions in a header. Without keys there is no such header, and nothing is asked.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from time import monotonic
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from samclip_core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    Unauthenticated,
    Unavailable,
)
from services.observability import metrics
from services.request import calls
from services.request.context import Caller, RequestContext

IDLE_S = 300.0
"""Longest wait for the next message. A session holds one of the places of its caller's API key."""
LONGEST_S = 3600.0
"""Longest session, so that an old checkpoint or a stopped replica is released in the end."""
MAX_MESSAGES = 1000
"""Messages in one session. Each counts as a request of its API key, the first with the session."""
MAX_SESSIONS = 64
"""Sessions of a replica at once: a quarter of its requests, since most of them only wait."""

CHECK_S = 2.0
"""Longest time between two questions about a key, and so until the streams of a revoked one end."""
ANSWER_S = 5.0
"""Time limit of an answer. Without one, a message is refused: the front door has ended."""
SILENT_S = 20.0
"""Longest time that a stream continues without an answer. A front door that stops lets calls in
flight finish for half as long."""
WAIT_S = 10.0
"""Longest time that a message waits because of its key's rate. A session must not end at once: its
caller would open another one and repeat all its messages."""
AGAIN_S = 0.25

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


class StreamKey:
    """The key of one stream. Does nothing without ``opened``, a channel to the front door."""

    def __init__(self, context: RequestContext, opened: grpc.aio.Channel | None):
        self._caller = context.caller
        self._channel = opened
        self._asked = self._confirmed = monotonic()
        self._metadata = (
            (calls.SECRET_HEADER, os.environ.get(calls.SECRET_VARIABLE, "")),
            ("x-samclip-key-hash", context.ask.rpartition(" ")[2]),
            ("x-request-id", context.id),
        )

    async def count(self) -> None:
        """Count one more request. Raises the errors of ``_ask``, Overloaded after WAIT_S."""
        until = monotonic() + WAIT_S
        while self._channel is not None:
            try:
                await self._ask(self._channel, "Count")
                return
            except Overloaded:
                if monotonic() > until:
                    raise
            await asyncio.sleep(AGAIN_S)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Raise Unauthenticated in this context if the key is revoked or changed.

        Raises Unavailable if nobody answers for SILENT_S.
        """
        if self._channel is None:
            yield
            return
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(self._watch(self._channel))
                yield
                watching.cancel()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _watch(self, opened: grpc.aio.Channel) -> None:
        while True:
            await asyncio.sleep(self._asked + CHECK_S - monotonic())
            try:
                await self._ask(opened, "Check")
            except Unavailable:
                if monotonic() > self._confirmed + SILENT_S:
                    raise

    async def _ask(self, opened: grpc.aio.Channel, rpc: str) -> None:
        """Raise Unauthenticated for a key that was changed, Overloaded and Unavailable."""
        method = opened.unary_stream(f"/samclip.Key/{rpc}", None, None)
        call = method(b"", metadata=self._metadata, timeout=ANSWER_S)
        code, details = await call.code(), await call.details()
        self._asked = monotonic()  # not before: an update of a stream may end the wait
        answer = {name: str(value) for name, value in await call.trailing_metadata()}
        del call  # otherwise the traceback of an error would keep the connection open
        if code is grpc.StatusCode.OK and Caller.read(answer, True) == self._caller:
            self._confirmed = self._asked
            return
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise Overloaded(details)
        if code in (grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED):
            raise Unauthenticated(
                f"the API key {self._caller.name!r} was revoked or changed: send a valid one"
            )
        raise Unavailable(f"the front door does not confirm the API key ({code.name}): try again")


@asynccontextmanager
async def opened(context: RequestContext) -> AsyncIterator[StreamKey]:
    """Yield the key of a stream, whose first message needs neither a question nor a count."""
    if not (address := context.ask.partition(" ")[0]):
        yield StreamKey(context, None)
        return
    async with calls.connect(address) as made:
        yield StreamKey(context, made)
