"""The API keys of streams, whose answers can take minutes.

The front door checks a key when a stream begins. The replica therefore asks the front door about
the key until the stream ends. The front door names the address for questions in a header. Without
keys there is no such header, and nothing is asked.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

import grpc

from samclip_core.errors import Unauthenticated, Unavailable
from services.request import calls
from services.request.context import Caller, RequestContext

CHECK_S = 2.0
"""Longest time between two questions about a key, and so until the streams of a revoked one end."""
ANSWER_S = 5.0
"""Time limit of an answer."""
SILENT_S = 20.0
"""Longest time that a stream continues without an answer. A front door that stops lets calls in
flight finish for half as long."""


class StreamKey:
    """The key of one stream. Nothing is asked about it outside ``asking``."""

    def __init__(self, context: RequestContext):
        self._caller = context.caller
        self._watching: asyncio.Task[None] | None = None
        self._confirmed = monotonic()
        self._metadata = (
            (calls.SECRET_HEADER, os.environ.get(calls.SECRET_VARIABLE, "")),
            ("x-samclip-key-hash", context.ask.rpartition(" ")[2]),
            ("x-request-id", context.id),
        )

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Raise Unauthenticated in this context if the key is revoked or changed.

        Raises Unavailable if nobody answers for SILENT_S.
        """
        if self._watching is None:
            yield
            return
        if self._watching.done():  # between two contexts
            self._watching.result()
        try:
            async with asyncio.TaskGroup() as group:
                failing = group.create_task(_result(self._watching))
                yield
                failing.cancel()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    @asynccontextmanager
    async def asking(self, opened: grpc.aio.Channel) -> AsyncIterator[None]:
        """Ask about the key in this context, in a task that updates of the stream do not end."""
        self._watching = asyncio.create_task(self._watch(opened))
        try:
            yield
        finally:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    async def _watch(self, opened: grpc.aio.Channel) -> None:
        while True:
            await asyncio.sleep(CHECK_S)
            await self._ask(opened)

    async def _ask(self, opened: grpc.aio.Channel) -> None:
        """Raise Unauthenticated for a key that was changed, Unavailable after SILENT_S."""
        method = opened.unary_stream("/samclip.Key/Check", None, None)
        call = method(b"", metadata=self._metadata, timeout=ANSWER_S)
        code = await call.code()
        now = monotonic()
        answer = {name: str(value) for name, value in await call.trailing_metadata()}
        del call  # otherwise the traceback of an error would keep the connection open
        if code is grpc.StatusCode.OK and Caller.read(answer, True) == self._caller:
            self._confirmed = now
        elif code in (grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED):
            raise Unauthenticated(
                f"the API key {self._caller.name!r} was revoked or changed: send a valid one"
            )
        elif now > self._confirmed + SILENT_S:
            raise Unavailable(
                f"the front door does not confirm the API key ({code.name}): try again"
            )


async def _result(task: asyncio.Task[None]) -> None:
    """Wait for a task, which goes on if this is cancelled, and raise its error."""
    await asyncio.shield(task)


@asynccontextmanager
async def opened(context: RequestContext) -> AsyncIterator[StreamKey]:
    """Yield the key of a stream, whose first message needs no question."""
    key = StreamKey(context)
    if not (address := context.ask.partition(" ")[0]):
        yield key
        return
    async with calls.connect(address) as made, key.asking(made):
        yield key
