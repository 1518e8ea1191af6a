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
import math
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Self

from samclip_core.errors import DeadlineExceeded, InvalidRequest, PermissionDenied, Unauthenticated
from services.observability import metrics
from services.request.limits import Reply
from services.request.request_log import REQUEST_ID
from services.settings import Settings

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
"""The name of a key, a tenant or a collection."""
COMMON = "-"
"""The tenant of collections and images that were added while no keys were required."""
KEY, TENANT, SCOPES = "x-samclip-key", "x-samclip-tenant", "x-samclip-scopes"

PRIORITY = "x-samclip-priority"  # interactive or bulk
TIMEOUT = "x-samclip-timeout"
"""Time left until the deadline, in gRPC's format: ``30S``, ``250m``. The front door copies it from
``grpc-timeout``, which Serve does not pass on; services send it to each other as well."""

CHECKPOINT = "x-samclip-checkpoint"
"""Header with the digest of the checkpoint that must answer; if absent, any may."""
GRAPHS = "x-samclip-graphs"
"""Header with the digest of the graphs that must answer, or PyTorch; if absent, any may."""
IMAGE_KEY = "x-samclip-image-key"
"""Header with the key of the image in an EmbedRequest, from a head that found no embedding of it in
Redis. The front door removes it from incoming requests: a caller could name another key."""

_SECONDS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}

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


@dataclass(eq=False)
class Priority:
    """A deadline on the clock of ``time.monotonic``; ``bulk`` work yields to all other work.

    Tenants take turns: the work counts as that of ``tenant``.
    """

    deadline: float = math.inf
    bulk: bool = False
    tenant: str = ""

    @classmethod
    def read(
        cls, headers: Mapping[str, str], most_s: float, bulk: bool = False, tenant: str = ""
    ) -> Self:
        """Read the headers, names in lower case; ``most_s`` and ``bulk`` are the defaults.

        A deadline more than ``most_s`` away is shortened to that. Raises InvalidRequest.
        """
        priority = headers.get(PRIORITY) or ("bulk" if bulk else "interactive")
        if priority not in ("interactive", "bulk"):
            raise InvalidRequest(f"{PRIORITY} is {priority[:80]!r}, expected interactive or bulk")
        left_s = _seconds(headers[TIMEOUT]) if headers.get(TIMEOUT) else most_s
        return cls(monotonic() + min(left_s, most_s), priority == "bulk", tenant)

    @property
    def is_own(self) -> bool:
        """Whether this is the service's own work: its tenant begins with a plus, no caller's does.

        Such work may find nothing to do, and says nothing about the time that others take.
        """
        return self.tenant.startswith("+")

    @classmethod
    def of_nobody(cls) -> Self:
        """Return the priority of shared work that no request has joined yet."""
        return cls(-math.inf, bulk=True)

    def join(self, other: "Priority") -> None:
        """Add a request that shares the work: the last deadline counts; bulk if all are.

        The work stays that of the first tenant.
        """
        self.deadline = max(self.deadline, other.deadline)
        self.bulk = self.bulk and other.bulk
        self.tenant = self.tenant or other.tenant

    def time_left(self) -> float | None:
        """Return the seconds until the deadline, or None if there is none."""
        return None if math.isinf(self.deadline) else max(0.0, self.deadline - monotonic())

    def headers(self) -> tuple[tuple[str, str], ...]:
        priority = (PRIORITY, "bulk" if self.bulk else "interactive")
        left_s = self.time_left()
        return (priority,) if left_s is None else (priority, (TIMEOUT, f"{int(1000 * left_s)}m"))


def _seconds(timeout: str) -> float:
    match = re.fullmatch(r"([0-9]{1,8})([HMSmun])", timeout)
    if match is None:
        raise InvalidRequest(
            f"{TIMEOUT} is {timeout[:80]!r}, expected a whole number and a unit of H, M, S, m, u "
            "or n, as in 250m for 250 milliseconds"
        )
    return int(match[1]) * _SECONDS[match[2]]


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
