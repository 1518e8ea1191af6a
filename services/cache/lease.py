"""The same thing at the same time is done once among all processes: a lease in Redis.

Whoever gets the lease works and renews it; the others wait for the result. A process that crashed
renews nothing, and another one takes over. Where Redis does not answer, each works for itself.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from services.cache.link import RedisLink, Unanswered

LEASE_MS = 3000
"""For which a process that has said nothing is believed to be alive."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.005, 0.05
"""Between two looks for what another process makes."""

_IF_OURS = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call({}) end return 0"
_RENEW = _IF_OURS.format("'pexpire', KEYS[1], ARGV[2]")
_RELEASE = _IF_OURS.format("'del', KEYS[1]")

T = TypeVar("T")


class Leases:
    """For the work of one contract, and one event loop."""

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
        """What ``find`` sees of another process' work, or the result (the error) of ``work``.

        ``find`` may raise Unanswered. ``settle`` returns when others can find the result: the
        lease is kept until then, after this call has returned.
        """
        lease = _Lease(self._link, f"samclip:lease:{self._contract}:{key}")
        try:
            found = await _wait(lease, find)
            return await lease.renewed_during(work) if found is None else found
        finally:
            self._release(lease, settle)

    async def close(self) -> None:
        """Let go of all leases."""
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
    """What another process has made meanwhile; None when the work is ours."""
    pause_s = FIRST_WAIT_S
    try:
        while True:
            taken = await lease.take()
            found = await find()  # also when taken: it may have been made just before
            if taken or found is not None:
                return found
            await asyncio.sleep(pause_s)
            pause_s = min(1.5 * pause_s, LONGEST_WAIT_S)
    except Unanswered:
        return None


class _Lease:
    """A key in Redis that holds the token of whoever works."""

    def __init__(self, link: RedisLink, name: str):
        self._link = link
        self._name = name
        self._token = uuid.uuid4().hex
        self._taking: asyncio.Task[object] | None = None

    async def take(self) -> bool:
        """Tell whether it was free. Raises Unanswered; it may be ours even then.

        A caller that is cancelled leaves the command under way: it is known when it has arrived.
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
        """Free it if it is ours, once that is decided."""
        if self._taking is not None:
            await asyncio.wait([self._taking])
        with suppress(Unanswered):
            await self._run(_RELEASE)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(LEASE_MS / 3000)
            with suppress(Unanswered):
                await self._run(_RENEW, str(LEASE_MS))

    async def _run(self, script: str, *args: str) -> None:
        await self._link.write(self._link.client.eval, script, 1, self._name, self._token, *args)
