"""The context of one request, made once from its headers and passed on as an argument.

It has the caller, who is the owner of an API key, and the deadline and priority. The front door
checks the keys (``services.front_door.keys``), removes the headers below from incoming requests,
and sets them. Services pass them on to each other. Without a key file nobody sets those of the
key: there is then a single tenant, with all permissions.
"""

import asyncio
import hashlib
import json
import logging
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Self

from samclip_core.errors import DeadlineExceeded, PermissionDenied, Unauthenticated
from services.batching.priority import Priority
from services.observability import metrics
from services.request.limits import Reply
from services.request.request_log import REQUEST_ID
from services.settings import Settings

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
"""The name of a key, a tenant or a collection."""
COMMON = "-"
"""The tenant of collections and images that were added while no keys were required."""
KEY, TENANT, SCOPES = "x-samclip-key", "x-samclip-tenant", "x-samclip-scopes"

CHECKPOINT = "x-samclip-checkpoint"
"""Header with the digest of the checkpoint that must answer; if absent, any may."""
GRAPHS = "x-samclip-graphs"
"""Header with the digest of the graphs that must answer, or PyTorch; if absent, any may."""
IMAGE_KEY = "x-samclip-image-key"
"""Header with the key of the image in an EmbedRequest, from a head that found no embedding of it in
Redis. The front door removes it from incoming requests: a caller could name another key."""

audit_log = logging.getLogger("samclip.audit")
"""Writes one JSON object per change of a collection to stderr, at any log level."""
audit_log.setLevel(logging.INFO)
audit_log.propagate = False
audit_log.addHandler(logging.StreamHandler(sys.stderr))


@dataclass(frozen=True)
class Caller:
    """The owner of an API key. If no keys are required, ``scopes`` is None and ``tenant`` empty."""

    name: str = ""
    tenant: str = ""
    scopes: frozenset[str] | None = None

    @classmethod
    def read(cls, headers: Mapping[str, str], keys_asked_for: bool) -> Self:
        """Read the headers, names in lower case. Raises Unauthenticated if a key is missing.

        The headers must be known to come from the front door.
        """
        if SCOPES not in headers:
            if keys_asked_for:
                raise Unauthenticated("the front door found no valid API key: send one")
            return cls()
        tenant = headers.get(TENANT, "")
        scopes = frozenset(headers[SCOPES].split(","))
        return cls(headers.get(KEY, ""), "" if tenant == COMMON else tenant, scopes)

    def check(self, scope: str) -> None:
        """Raise PermissionDenied unless the key has this scope."""
        if self.scopes is not None and scope not in self.scopes:
            raise PermissionDenied(
                f"the API key {self.name!r} has no scope {scope!r}, which this needs: use another "
                "key, or ask the operator for one (samclip keys)"
            )

    def headers(self) -> tuple[tuple[str, str], ...]:
        """Return the headers for the next service, with ``read``, the only scope it needs."""
        if self.scopes is None:
            return ()
        return (KEY, self.name), (TENANT, self.tenant or COMMON), (SCOPES, "read")

    def cache_key(self, image_key: str) -> str:
        """Return the cache key of an image that this tenant has sent; no other tenant can use it.

        An image key can be shared, or computed from the file; only an entry under this name proves
        that the tenant has sent the file.
        """
        image_key = image_key.lower()
        if not self.tenant:  # the tenant of images sent without API keys
            return image_key
        # Image keys are lower case, so no caller can pass this upper-case name as an image key.
        return hashlib.sha256(f"{self.tenant}/{image_key}".encode()).hexdigest().upper()

    def audit(self, action: str, request_id: str, code: str, **about: object) -> None:
        """Log an action that was taken, or attempted, with a key."""
        if self.scopes is None:
            return
        record = {"audit": action, "key": self.name, "tenant": self.tenant, **about}
        audit_log.info(json.dumps({**record, "code": code, "id": request_id}))


@dataclass(frozen=True, kw_only=True)
class RequestContext:
    """The caller, priority and id of a request, and the size of its answer.

    ``checkpoint``, ``graphs`` and ``image_key`` are the headers of these names, "" if
    absent. ``model`` is the name that a request of another protocol gives to its model.
    """

    id: str = ""
    caller: Caller = field(default_factory=Caller)
    priority: Priority = field(default_factory=Priority)
    checkpoint: str = ""
    graphs: str = ""
    image_key: str = ""
    model: str = ""
    reply: Reply = field(default_factory=Reply, compare=False)

    @classmethod
    def read(
        cls,
        headers: Mapping[str, str],
        settings: Settings,
        bulk: bool = False,
    ) -> Self:
        """Read the headers, whose names are in lower case. Raises Unauthenticated, InvalidRequest.

        The settings limit the deadline; ``bulk`` is the default if the headers name no priority.
        """
        caller = Caller.read(headers, bool(settings.api_keys_file))
        return cls(
            id=headers.get(REQUEST_ID, ""),
            caller=caller,
            priority=Priority.read(headers, settings.request_timeout_s, bulk, caller.tenant),
            checkpoint=headers.get(CHECKPOINT, ""),
            graphs=headers.get(GRAPHS, ""),
            image_key=headers.get(IMAGE_KEY, ""),
            reply=Reply(caller.name),
        )

    def in_bulk(self) -> Self:
        """Return the same request as bulk work, with the same deadline."""
        return replace(self, priority=replace(self.priority, bulk=True))

    def headers(self) -> tuple[tuple[str, str], ...]:
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
        named_s = total_s or left_s or 0.0  # some of which may have passed already
        raise DeadlineExceeded(
            f"no answer within {named_s:.{2 if named_s < 10 else 3}g} s: try again later, or send "
            "less in one request"
        ) from error
