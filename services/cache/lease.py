"""Run the same work once for all processes that share a Redis, with a lease.

The process that gets the lease does the work and renews the lease; the others wait for the result.
The lease of a crashed process expires and another process takes over. If Redis does not answer,
each process does the work itself.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from services.cache.link import RedisLink, Unanswered

LEASE_MS = 3000
"""Lifetime of a lease that is not renewed: a crash delays the other processes this long."""
RENEWED_EVERY_S = LEASE_MS / 3000
"""Two renewals in a row may fail before the lease expires."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.005, 0.05
"""Backoff between two checks for the result of another process."""

_IF_OURS = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call({}) end return 0"
_RENEW = _IF_OURS.format("'pexpire', KEYS[1], ARGV[2]")
_RELEASE = _IF_OURS.format("'del', KEYS[1]")

T = TypeVar("T")


class Leases:
    """The leases of one contract, for one event loop."""

    def __init__(self, link: RedisLink, contract: str):
        self._link = link
        self._contract = contract
        self._releases: set[asyncio.Task[None]] = set()

    async def once(
        self,
        key: str,
        find: Callable[[], Awaitable[T | None]],
        work: Callable[[], Awaitable[T]],
        settle: Callable[[], Awaitable[None]],
    ) -> T:
        """Return the result of another process, found by ``find``, or the result of ``work``.

        ``find`` may raise Unanswered. ``settle`` returns when other processes can find the result;
        the lease is kept until then, after this call has returned.
        """
        lease = _Lease(self._link, f"samclip:lease:{self._contract}:{key}")
        try:
            found = await _wait(lease, find)
            return await lease.renewed_during(work) if found is None else found
        finally:
            self._release(lease, settle)

    async def close(self) -> None:
        """Wait until all leases are released."""
        if self._releases:
            await asyncio.wait(self._releases)

    def _release(self, lease: "_Lease", settle: Callable[[], Awaitable[None]]) -> None:
        async def release() -> None:
            await settle()
            await lease.release()

        task = asyncio.create_task(release())
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)


async def _wait(lease: "_Lease", find: Callable[[], Awaitable[T | None]]) -> T | None:
    """Return the result of another process, or None if this process must do the work."""
    pause_s = FIRST_WAIT_S
    try:
        while True:
            taken = await lease.take()
            found = await find()  # even with the lease: another process may just have ended
            if taken or found is not None:
                return found
            await asyncio.sleep(pause_s)
            pause_s = min(1.5 * pause_s, LONGEST_WAIT_S)
    except Unanswered:
        return None


class _Lease:
    """A key in Redis that holds the token of the process that does the work."""

    def __init__(self, link: RedisLink, name: str):
        self._link = link
        self._name = name
        self._token = uuid.uuid4().hex
        self._taking: asyncio.Task[object] | None = None

    async def take(self) -> bool:
        """Return whether the lease was free. Raises Unanswered; it may be taken even then.

        Cancellation does not cancel the command, so that ``release`` can wait for its outcome.
        """
        write = self._link.write(
            self._link.client.set, self._name, self._token, nx=True, px=LEASE_MS
        )
        self._taking = asyncio.create_task(write)
        return bool(await asyncio.shield(self._taking))

    async def renewed_during(self, work: Callable[[], Awaitable[T]]) -> T:
        renewal = asyncio.create_task(self._keep())
        try:
            return await work()
        finally:
            renewal.cancel()

    async def release(self) -> None:
        """Release the lease if this process holds it, after a pending ``take``."""
        if self._taking is not None:
            await asyncio.wait([self._taking])
        with suppress(Unanswered):
            await self._run(_RELEASE)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(RENEWED_EVERY_S)
            with suppress(Unanswered):
                await self._run(_RENEW, str(LEASE_MS))

    async def _run(self, script: str, *args: str) -> None:
        await self._link.write(self._link.client.eval, script, 1, self._name, self._token, *args)
