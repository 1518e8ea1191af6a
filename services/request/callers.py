"""The caller of a request: the name, scopes and tenant of its API key.

The front door checks the keys (``services.front_door.keys``). It removes the headers below from
incoming requests and sets them from the key. Services pass them on to each other. Without a key
file nobody sets them: there is then a single tenant, with all permissions.
"""

import hashlib
import json
import logging
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from samclip_core.errors import PermissionDenied, Unauthenticated

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
"""The name of a key, a tenant or a collection."""
COMMON = "-"
"""The tenant of collections and images that were added while no keys were required."""
KEY, TENANT, SCOPES = "x-samclip-key", "x-samclip-tenant", "x-samclip-scopes"

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
