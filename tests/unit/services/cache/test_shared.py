"""Reads of Redis: those of a modest tenant do not wait for all those of a greedy one."""

import asyncio
from types import SimpleNamespace
from typing import Any

from samclip.v1 import samclip_pb2 as pb

from services.batching.priority import Priority
from services.cache.shared import READS_AT_ONCE, SharedTier


async def test_tenants_take_turns_at_redis() -> None:
    read, go_on = list[str](), asyncio.Event()

    async def mget(names: list[str]) -> list[None]:
        read.append(names[0])
        await go_on.wait()
        return [None]

    link: Any = SimpleNamespace(client=SimpleNamespace(mget=mget), read=lambda call, *a: call(*a))
    tier, late = SharedTier(link, "c"), 3 * READS_AT_ONCE
    greedy = [
        asyncio.create_task(tier.get(f"{key:064}", (pb.SAM,), Priority(tenant="greedy")))
        for key in range(late)
    ]
    await asyncio.sleep(0)
    modest = asyncio.create_task(tier.get(f"{late:064}", (pb.SAM,), Priority(tenant="modest")))
    expired = await tier.get("e" * 64, (pb.SAM,), Priority(deadline=0.0))
    assert expired == {}  # a miss
    go_on.set()
    await asyncio.gather(modest, *greedy)
    assert [f"{late:064}" in name for name in read].index(True) == READS_AT_ONCE
