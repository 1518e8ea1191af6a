"""A device with a queue in front of it, and what the tests ask of them."""

import asyncio
from collections.abc import Sequence
from typing import Any

from services.batching.priority import Priority
from services.batching.queue import Queue
from services.observability import metrics
from tests.shown import shown

NOW, BULK = Priority(), Priority(bulk=True)


class Device:
    """A device that doubles numbers while ``free`` is set, and fails on the item ``poison``."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.free = asyncio.Event()
        self.free.set()
        self.poison: int | None = None

    async def run(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        await self.free.wait()
        if self.poison in items:
            raise ZeroDivisionError(self.poison)
        return [2 * item for item in items]


def make(device: Device, max_queue: int = 100, at_once: int = 1, **options: Any) -> Queue[int, int]:
    return Queue(device.run, part="test", max_queue=max_queue, at_once=at_once, **options)


def batches(
    device: Device, max_size: int = 4, max_wait_s: float = 60.0, **options: Any
) -> Queue[int, int]:
    return make(device, max_size=max_size, max_wait_s=max_wait_s, **options)


async def submit(
    queue: Queue[int, int], *items: int, priority: Priority = NOW, work: float = 1
) -> list[asyncio.Task[int]]:
    """Submit items, and wait until they run or wait for the device."""
    calls = [asyncio.create_task(queue.submit(item, priority, work)) for item in items]
    await settle()
    return calls


async def finish(device: Device, calls: Sequence[asyncio.Task[int]]) -> list[int]:
    """Free the device and return the results."""
    device.free.set()
    return await asyncio.gather(*calls)


async def busy(device: Device, queue: Queue[int, int]) -> asyncio.Task[int]:
    """Block the device with the item 0, so that others have to wait."""
    device.free.clear()
    (first,) = await submit(queue, 0)
    return first


def released(reason: str) -> float:
    return shown(metrics.BATCH_RELEASE.labels("test", reason))


def shed(reason: str) -> float:
    return shown(metrics.SHED.labels(reason))


async def settle() -> None:
    """Run all tasks that are ready."""
    for _ in range(20):
        await asyncio.sleep(0)
