"""The second tier of the embedding cache: Redis, shared by all processes, and its leases.

Errors count as misses, so no request fails here. Every entry expires, so that a ``volatile-…``
eviction policy removes only cache entries.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal

from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import DeadlineExceeded, Overloaded
from services.batching.priority import Priority
from services.batching.threads import Places, Threads
from services.cache.connection import RedisLink, Unanswered
from services.cache.entry import Entries, Entry, name, pack, unpack
from services.observability import metrics

DAY_S = 86_400
LIFETIME_S = {
    pb.SAM: DAY_S,
    pb.SAM_FINE: DAY_S,
    pb.CLIP_DENSE: 3 * DAY_S,
    pb.CLIP_POOLED: 30 * DAY_S,
    pb.REGIONS: 7 * DAY_S,
}
"""Expiry by output: short for the large maps, which few requests reuse; long for small vectors.
Regions take longest to make."""

OUTPUTS = tuple(LIFETIME_S)
OUTCOMES = ("hit", "miss", "corrupt", "error", "written", "write_error", "write_dropped")

WRITE_BYTES = 64 * 2**20
"""Limit of the bytes in pending writes; entries beyond it are dropped."""
READS_AT_ONCE, WRITES_AT_ONCE = 32, 4
"""Concurrent reads and writes, of one image each. The timeout starts after the wait for a slot."""

LEASE_MS = 3000
"""Lifetime of a lease that is not renewed: a crash delays the other processes this long."""
RENEWED_EVERY_S = LEASE_MS / 3000
"""Two renewals in a row may fail before the lease expires."""
OWN = Priority(tenant="+cache")
"""Of writes, for which nobody waits."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.005, 0.05
"""Backoff between two checks for the result of another process."""

_TAKE = """
local taken = redis.call('set', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2])
return {taken and 1 or 0, redis.call('exists', unpack(KEYS, 2))}
"""
"""Takes the lease if it is free, and counts the entries that there are."""
_IF_OURS = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call({}) end return 0"
_RENEW = _IF_OURS.format("'pexpire', KEYS[1], ARGV[2]")
_RELEASE = _IF_OURS.format("'del', KEYS[1]")


class SharedTier:
    """Embeddings in Redis of one ``entry.contract`` by image key and output, for one event loop."""

    def __init__(self, link: RedisLink, contract: str):
        self._link = link
        self._contract = contract
        self._reads = Places("cache_read", READS_AT_ONCE)
        self._writes = Places("cache_write", WRITES_AT_ONCE)
        self._threads = Threads("cache")
        self._writing: dict[str, asyncio.Task[None]] = {}  # by image key
        self._leases: dict[str, _Lease] = {}  # that this process holds, by name
        self._writing_bytes = 0
        self._releasing: set[asyncio.Task[None]] = set()
        for outcome in OUTCOMES:  # else a rate would miss the first event of a series
            _count(OUTPUTS, outcome, 0)

    async def get(
        self, cache_key: str, outputs: Sequence[pb.Output], priority: Priority
    ) -> dict[pb.Output, Entry]:
        """Return those of ``outputs`` that are in Redis and valid."""
        names = self._names(cache_key, outputs)
        try:
            async with self._reads.held(priority):
                values = await self._link.read(self._link.client.mget, names)
            entries: list[Entry | None] = [None] * len(values)
            if any(values):
                unpacked = map(unpack, names, (value or b"" for value in values))
                entries = await self._threads.run(priority, "hash", list, unpacked)
        except (Unanswered, DeadlineExceeded, Overloaded):
            _count(outputs, "error")
            return {}
        found = {}
        for output, value, entry in zip(outputs, values, entries, strict=True):
            _count([output], "hit" if entry else "miss" if value is None else "corrupt")
            if entry is not None:
                found[output] = entry
        return found

    def put(self, cache_key: str, entries: Entries) -> None:
        """Write entries in the background, or drop them if WRITE_BYTES are pending.

        The same round trip releases the lease for them.
        """
        size = sum(entry.array.nbytes for entry in entries.values())
        if not self._link.write.closed or self._writing_bytes + size > WRITE_BYTES:
            _count(entries, "write_dropped")
            return
        self._writing_bytes += size
        lease = self._leases.get(self._lease_name(cache_key, entries))
        task = asyncio.create_task(self._write(cache_key, entries, lease))
        self._writing[cache_key] = task

        def done(task: asyncio.Task[None]) -> None:
            self._writing_bytes -= size
            if self._writing.get(cache_key) is task:
                del self._writing[cache_key]

        task.add_done_callback(done)

    @asynccontextmanager
    async def lease(
        self, cache_key: str, outputs: Sequence[pb.Output], priority: Priority
    ) -> AsyncIterator[Entries | None]:
        """Wait until one process alone encodes an image, or until another one has encoded it.

        Yields the ``outputs`` that another process has written, or None if this one must encode and
        ``put`` them. It holds the lease until they are in Redis, after this context. The lease of a
        process that dies expires. If Redis does not answer, every process encodes. Regions, which
        are computed after the other outputs, have a lease of their own.
        """
        lease = _Lease(self._link, self._lease_name(cache_key, outputs))
        try:
            entries = await self._encoded_elsewhere(lease, cache_key, outputs, priority)
            self._leases[lease.name] = lease
            renewing = asyncio.create_task(lease.renew())
            try:
                yield entries
            finally:
                renewing.cancel()
        finally:
            if self._leases.get(lease.name) is lease:
                del self._leases[lease.name]
            task = asyncio.create_task(self._release(lease, cache_key))
            self._releasing.add(task)
            task.add_done_callback(self._releasing.discard)

    async def state(self) -> Literal["up", "down"]:
        """Return whether Redis answers now."""
        return await self._link.state()

    async def settled(self) -> None:
        """Wait until pending writes have ended and leases are released."""
        if pending := {*self._writing.values(), *self._releasing}:
            await asyncio.wait(pending)

    async def close(self) -> None:
        """Finish pending writes and disconnect."""
        await self.settled()
        self._threads.close()
        await self._link.close()

    async def _encoded_elsewhere(
        self, lease: "_Lease", cache_key: str, outputs: Sequence[pb.Output], priority: Priority
    ) -> Entries | None:
        """Wait for the lease, and return None, or for all ``outputs`` of another process."""
        names = self._names(cache_key, outputs)
        pause_s = FIRST_WAIT_S
        try:
            while True:
                taken, count = await lease.take(names)
                if count == len(names):  # even with the lease: another process may just have ended
                    entries = await self.get(cache_key, outputs, priority)
                    if len(entries) == len(outputs):
                        return entries
                if taken:
                    return None
                await asyncio.sleep(pause_s)
                pause_s = min(1.5 * pause_s, LONGEST_WAIT_S)
        except Unanswered:
            return None

    async def _release(self, lease: "_Lease", cache_key: str) -> None:
        """Release a lease after the pending write of its image, if that does not release it."""
        if cache_key in self._writing:
            await asyncio.wait([self._writing[cache_key]])
        if not lease.released:
            await lease.release()

    async def _write(self, cache_key: str, entries: Entries, lease: "_Lease | None") -> None:
        """Write all entries, and release the lease for them, in one round trip."""
        names = self._names(cache_key, entries)
        made = map(pack, names, entries.values())
        packed: list[bytes] = await self._threads.run(OWN, "hash", list, made)
        pipeline = self._link.client.pipeline(transaction=False)
        for output, key, data in zip(entries, names, packed, strict=True):
            pipeline.set(key, data, ex=LIFETIME_S[output])
        if lease is not None:
            lease.release_in(pipeline)
        try:
            async with self._writes.held(OWN):
                await self._link.write(pipeline.execute)
            if lease is not None:
                lease.released = True
        except Unanswered:
            _count(entries, "write_error")
        else:
            _count(entries, "written")

    def _names(self, cache_key: str, outputs: Iterable[pb.Output]) -> list[str]:
        return [name(self._contract, cache_key, output) for output in outputs]

    def _lease_name(self, cache_key: str, outputs: Iterable[pb.Output]) -> str:
        """Return the key of the lease for these outputs, in the slot of the entries."""
        part = ":REGIONS" if pb.REGIONS in outputs else ""
        return f"samclip:lease:{self._contract}:{{{cache_key}}}{part}"


class _Lease:
    """A key in Redis with the token of the process that encodes an image."""

    def __init__(self, link: RedisLink, name: str):
        self.name = name
        self.released = False
        self._link = link
        self._token = uuid.uuid4().hex
        self._taking: asyncio.Task[list[int]] | None = None

    async def take(self, entries: Sequence[str]) -> tuple[bool, int]:
        """Return whether the lease was free, and how many of these entries there are.

        Raises Unanswered; the lease may be taken even then. Cancellation does not cancel the
        command, so that ``release`` can wait for its outcome.
        """
        keys = [self.name, *entries]
        write = self._link.write(
            self._link.client.eval, _TAKE, len(keys), *keys, self._token, str(LEASE_MS)
        )
        self._taking = asyncio.create_task(write)
        taken, count = await asyncio.shield(self._taking)
        return bool(taken), count

    async def renew(self) -> None:
        """Renew the lease until this task is cancelled."""
        while True:
            await asyncio.sleep(RENEWED_EVERY_S)
            await self._run(_RENEW, str(LEASE_MS))

    async def release(self) -> None:
        """Release the lease if this process holds it, after a pending ``take``."""
        if self._taking is not None:
            await asyncio.wait([self._taking])
        await self._run(_RELEASE)

    def release_in(self, pipeline: Any) -> None:
        """Add the release to a pipeline."""
        pipeline.eval(_RELEASE, 1, self.name, self._token)

    async def _run(self, script: str, *args: str) -> None:
        with suppress(Unanswered):
            await self._link.write(self._link.client.eval, script, 1, self.name, self._token, *args)


def _count(outputs: Iterable[pb.Output], outcome: str, times: int = 1) -> None:
    for output in outputs:
        metrics.CACHE.labels("l2", pb.Output.Name(output), outcome).inc(times)
