"""The deadline and the urgency of a request, and the tenant for whom it is worked on."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Self

from samclip_core.errors import InvalidRequest

PRIORITY = "x-samclip-priority"  # interactive or bulk
TIMEOUT = "x-samclip-timeout"
"""Time left until the deadline, in gRPC's format: ``30S``, ``250m``. The front door copies it from
``grpc-timeout``, which Serve does not pass on; services send it to each other as well."""

_SECONDS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


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
