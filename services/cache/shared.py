"""The second tier of the embedding cache: Redis, shared by all processes.

Errors count as misses, so no request fails here. Every entry expires, so that a ``volatile-…``
eviction policy removes only cache entries.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Literal

from samclip.v1 import samclip_pb2 as pb

from services.cache.entry import Entries, Entry, name, pack, unpack
from services.cache.lease import Leases
from services.cache.link import RedisLink, Unanswered
from services.observability import metrics

DAY_S = 86_400
LIFETIME_S = {pb.SAM: DAY_S, pb.CLIP_DENSE: 3 * DAY_S, pb.CLIP_POOLED: 30 * DAY_S}
"""Expiry by output: short for the large maps, which few requests reuse; long for small vectors."""

OUTPUTS = tuple(LIFETIME_S)
OUTCOMES = ("hit", "miss", "corrupt", "error", "written", "write_error", "write_dropped")

WRITE_BYTES = 64 * 2**20
"""Limit of the bytes in pending writes; entries beyond it are dropped."""
READS_AT_ONCE, WRITES_AT_ONCE = 32, 4
"""Concurrent reads and writes, of one image each. The timeout starts after the wait for a slot."""


class SharedTier:
    """Embeddings in Redis of one ``entry.contract`` by image key and output, for one event loop."""

    def __init__(self, link: RedisLink, contract: str):
        self._link = link
        self._leases = Leases(link, contract)
        self._contract = contract
        self._read_slots = asyncio.Semaphore(READS_AT_ONCE)
        self._write_slots = asyncio.Semaphore(WRITES_AT_ONCE)
        self._writing: dict[str, asyncio.Task[None]] = {}  # by image key
        self._writing_bytes = 0
        for outcome in OUTCOMES:  # else a rate would miss the first event of a series
            _count(OUTPUTS, outcome, 0)

    async def get(self, image_key: str, outputs: Sequence[pb.Output]) -> dict[pb.Output, Entry]:
        """Return those of ``outputs`` that are in Redis and valid."""
        names = self._names(image_key, outputs)
        try:
            async with self._read_slots:
                values = await self._link.read(self._link.client.mget, names)
        except Unanswered:
            _count(outputs, "error")
            return {}
        entries: list[Entry | None] = [None] * len(values)
        if any(values):
            entries = await asyncio.to_thread(_unpack_all, names, values)
        found = {}
        for output, value, entry in zip(outputs, values, entries, strict=True):
            _count([output], "hit" if entry else "miss" if value is None else "corrupt")
            if entry is not None:
                found[output] = entry
        return found

    def put(self, image_key: str, entries: Entries) -> None:
        """Write entries in the background, or drop them if WRITE_BYTES are pending."""
        size = sum(entry.array.nbytes for entry in entries.values())
        if not self._link.writes.closed or self._writing_bytes + size > WRITE_BYTES:
            _count(entries, "write_dropped")
            return
        self._writing_bytes += size
        task = asyncio.create_task(self._write(image_key, entries))
        self._writing[image_key] = task

        def done(task: asyncio.Task[None]) -> None:
            self._writing_bytes -= size
            if self._writing.get(image_key) is task:
                del self._writing[image_key]

        task.add_done_callback(done)

    async def once(
        self,
        image_key: str,
        outputs: Sequence[pb.Output],
        encode: Callable[[], Awaitable[Entries]],
    ) -> Entries:
        """Return ``outputs``, from another process that encodes the image or from ``encode``.

        ``encode`` must ``put`` them.
        """
        find, settle = partial(self._find, image_key, outputs), partial(self._written, image_key)
        return await self._leases.once(image_key, find, encode, settle)

    async def state(self) -> Literal["up", "down"]:
        """Return whether Redis answers now."""
        return await self._link.state()

    async def close(self) -> None:
        """Finish pending writes and disconnect."""
        if self._writing:
            await asyncio.wait(self._writing.values())
        await self._leases.close()
        await self._link.close()

    async def _find(self, image_key: str, outputs: Sequence[pb.Output]) -> Entries | None:
        """Return all ``outputs``, or None unless all are in Redis. Raises Unanswered."""
        names = self._names(image_key, outputs)
        if await self._link.read(self._link.client.exists, *names) < len(names):
            return None
        found = await self.get(image_key, outputs)
        return found if len(found) == len(outputs) else None

    async def _written(self, image_key: str) -> None:
        """Wait for a pending write of an image."""
        if image_key in self._writing:
            await asyncio.wait([self._writing[image_key]])

    async def _write(self, image_key: str, entries: Entries) -> None:
        """Write all entries in one round trip."""
        names = self._names(image_key, entries)
        packed = await asyncio.to_thread(_pack_all, names, entries.values())
        pipeline = self._link.client.pipeline(transaction=False)
        for output, key, data in zip(entries, names, packed, strict=True):
            pipeline.set(key, data, ex=LIFETIME_S[output])
        try:
            async with self._write_slots:
                await self._link.write(pipeline.execute)
        except Unanswered:
            _count(entries, "write_error")
        else:
            _count(entries, "written")

    def _names(self, image_key: str, outputs: Iterable[pb.Output]) -> list[str]:
        return [name(self._contract, image_key, output) for output in outputs]


def _pack_all(names: Iterable[str], entries: Iterable[Entry]) -> list[bytes]:
    return [pack(name, entry) for name, entry in zip(names, entries, strict=True)]


def _unpack_all(names: Sequence[str], values: Sequence[bytes | None]) -> list[Entry | None]:
    return [
        None if value is None else unpack(name, value)
        for name, value in zip(names, values, strict=True)
    ]


def _count(outputs: Iterable[pb.Output], outcome: str, times: int = 1) -> None:
    for output in outputs:
        metrics.CACHE.labels("l2", pb.Output.Name(output), outcome).inc(times)
