"""The context of one request, made once from its headers and passed on as an argument."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Self

from samclip_core.errors import DeadlineExceeded
from services.observability import metrics
from services.request.callers import Caller
from services.request.limits import Reply
from services.request.priority import Priority
from services.request.request_log import REQUEST_ID
from services.settings import Settings

CHECKPOINT = "x-samclip-checkpoint"
"""Header with the digest of the checkpoint that must answer; if absent, any may."""
GRAPHS = "x-samclip-graphs"
"""Header with the digest of the graphs that must answer; torch may, and if absent, any may."""
ASK = "x-samclip-ask"
"""Header, which only the front door can set: its address for questions, and the hash of the key."""
IMAGE_KEY = "x-samclip-image-key"
"""Header with the key of the image in an EmbedRequest, from a head that found no embedding of it in
Redis. The front door removes it from incoming requests: a caller could name another key."""


@dataclass(frozen=True, kw_only=True)
class RequestContext:
    """The caller, priority and id of a request, and the size of its answer.

    ``checkpoint``, ``graphs``, ``ask`` and ``image_key`` are the headers of these names, "" if
    absent.
    """

    id: str = ""
    caller: Caller = field(default_factory=Caller)
    priority: Priority = field(default_factory=Priority)
    checkpoint: str = ""
    graphs: str = ""
    ask: str = ""
    image_key: str = ""
    reply: Reply = field(default_factory=Reply, compare=False)

    @classmethod
    def read(
        cls,
        headers: Mapping[str, str],
        settings: Settings,
        most_s: float | None = None,
        bulk: bool = False,
    ) -> Self:
        """Read the headers, whose names are in lower case. Raises Unauthenticated, InvalidRequest.

        ``most_s`` limits the deadline, or else the settings do; ``bulk`` is the default if the
        headers name no priority.
        """
        return cls(
            id=headers.get(REQUEST_ID, ""),
            caller=Caller.read(headers, bool(settings.api_keys_file)),
            priority=Priority.read(headers, most_s or settings.request_timeout_s, bulk),
            checkpoint=headers.get(CHECKPOINT, ""),
            graphs=headers.get(GRAPHS, ""),
            ask=headers.get(ASK, ""),
            image_key=headers.get(IMAGE_KEY, ""),
        )

    def in_bulk(self) -> Self:
        """Return the same request as bulk work, with the same deadline."""
        return replace(self, priority=Priority(self.priority.deadline, bulk=True))

    def within(self, most_s: float) -> Self:
        """Return one message of a session, with a deadline at most ``most_s`` away."""
        deadline = min(self.priority.deadline, monotonic() + most_s)
        priority = Priority(deadline, self.priority.bulk)
        return replace(self, priority=priority, reply=Reply())

    def headers(self) -> tuple[tuple[str, str], ...]:
        """Return the headers to pass on to the next service."""
        return ((REQUEST_ID, self.id), *self.priority.headers(), *self.caller.headers())


@asynccontextmanager
async def time_limit(context: RequestContext, total_s: float | None = None) -> AsyncIterator[None]:
    """Stop the work in this context at its deadline. Raises DeadlineExceeded then.

    ``total_s`` is the limit that the error names, if the work began earlier.
    """
    limit = asyncio.timeout(left_s := context.priority.time_left())
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        metrics.SHED.labels("deadline").inc()
        raise DeadlineExceeded(
            f"no answer within {total_s or left_s:.3g} s: try again later, or send less in one "
            "request"
        ) from error
