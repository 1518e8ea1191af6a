"""Who sends a request, as the front door has found out, and the scopes and tenant of that key.

The front door knows the keys (``services.front_door.keys``). It removes the headers below from what
callers send, and writes into them whose key it was. Services pass the headers on to each other.
Without a file of keys nobody sets them: there is one tenant then, who may do everything.
"""

import hashlib
import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from samclip_core.errors import PermissionDenied, Unauthenticated

COMMON = "-"
"""The tenant of collections and images that came in while no keys were asked for."""
KEY, TENANT, SCOPES = "x-samclip-key", "x-samclip-tenant", "x-samclip-scopes"

audit_log = logging.getLogger("samclip.audit")
"""A JSON object for each change of a collection, on stderr whatever else is logged."""
audit_log.setLevel(logging.INFO)
audit_log.propagate = False
audit_log.addHandler(logging.StreamHandler(sys.stderr))


@dataclass(frozen=True)
class Caller:
    """``scopes`` is None where no keys are asked for; ``tenant`` is empty there as well."""

    name: str = ""
    tenant: str = ""
    scopes: frozenset[str] | None = None

    @classmethod
    def read(cls, headers: Mapping[str, str], keys_asked_for: bool) -> Self:
        """What the headers say, names in lower case. Raises Unauthenticated if that is too little.

        Only for headers that came through the front door, which is checked before.
        """
        if SCOPES not in headers:
            if keys_asked_for:
                raise Unauthenticated("the front door does not know who asks: send an API key")
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
        """The headers to pass on to the next service: whom a service works for may also ask it."""
        if self.scopes is None:
            return ()
        return (KEY, self.name), (TENANT, self.tenant or COMMON), (SCOPES, "read")

    def cache_key(self, image_key: str) -> str:
        """The name under which what this tenant has sent is cached: nobody else can ask for it.

        The key of an image can be shared, or computed of a file; that a tenant has sent the file
        is proven by nothing else than that it is found under this name.
        """
        image_key = image_key.lower()
        if not self.tenant:  # it owns the images that came in without keys
            return image_key
        # Image keys are in lower case: nobody can ask for another tenant's image by this name.
        return hashlib.sha256(f"{self.tenant}/{image_key}".encode()).hexdigest().upper()

    def audit(self, action: str, request_id: str, code: str, **about: object) -> None:
        """Write down what was done with a key, or tried."""
        if self.scopes is None:
            return
        record = {"audit": action, "key": self.name, "tenant": self.tenant, **about}
        audit_log.info(json.dumps({**record, "code": code, "id": request_id}))
