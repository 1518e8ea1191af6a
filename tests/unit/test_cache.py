import asyncio

import numpy as np
import pytest
from samclip.v1 import samclip_pb2 as pb

from samclip_core.geometry import Geometry
from services import metrics
from services.backbone.cache import SHARES, Cache, Entry, SingleFlight, namespace

GEOMETRY = Geometry(10, 20, 32)
ALL = (pb.SAM, pb.CLIP_DENSE, pb.CLIP_POOLED)


def entry(values: int, fill: float = 0.0) -> Entry:
    return Entry(np.full(values, fill, np.float16), GEOMETRY)


def entries(fill: float = 0.0) -> dict:
    return {
        pb.SAM: entry(300, fill),
        pb.CLIP_DENSE: entry(150, fill),
        pb.CLIP_POOLED: entry(5, fill),
    }


def count(output: str, outcome: str) -> float:
    return metrics.CACHE.labels("l1", output, outcome)._value.get()


def test_everything_that_decides_the_numbers_is_in_the_name():
    names = {
        namespace("a", 384, "float32"),
        namespace("b", 384, "float32"),
        namespace("a", 512, "float32"),
        namespace("a", 384, "bfloat16"),
    }
    assert len(names) == 4


def test_each_output_is_an_entry_of_its_own():
    cache = Cache(1 << 20, "model")
    cache.put("k", {pb.CLIP_POOLED: entry(5, 1.0)})
    found = cache.get("k", (pb.CLIP_POOLED,))
    assert found is not None
    assert found[pb.CLIP_POOLED].array[0] == 1.0
    assert cache.get("k", ALL) is None
    assert cache.get("other", (pb.CLIP_POOLED,)) is None


def test_hits_and_misses_are_counted_by_output():
    cache = Cache(1 << 20, "model")
    cache.put("k", {pb.SAM: entry(5)})
    hits, misses = count("SAM", "hit"), count("CLIP_DENSE", "miss")
    cache.get("k", (pb.SAM, pb.CLIP_DENSE))
    assert (count("SAM", "hit"), count("CLIP_DENSE", "miss")) == (hits + 1, misses + 1)


def test_another_model_finds_nothing():
    first, second = Cache(1 << 20, "a"), Cache(1 << 20, "b")
    first.put("k", entries())
    second._shelves = first._shelves
    assert first.get("k", ALL) is not None
    assert second.get("k", ALL) is None


def test_its_bytes_are_bounded_and_the_least_recently_used_goes_first():
    cache = Cache(int(2 * 600 / SHARES[pb.SAM]) + 1, "model")  # room for two SAM maps
    cache.put("a", {pb.SAM: entry(300)})
    cache.put("b", {pb.SAM: entry(300)})
    assert cache.get("a", (pb.SAM,)) is not None
    cache.put("c", {pb.SAM: entry(300)})
    assert cache.get("b", (pb.SAM,)) is None
    assert cache.get("a", (pb.SAM,)) is not None
    assert cache.get("c", (pb.SAM,)) is not None
    assert cache.size == 1200


def test_maps_do_not_push_out_vectors():
    cache = Cache(5000, "model")
    for key in range(20):
        cache.put(str(key), entries())
    assert cache.get("0", (pb.SAM,)) is None
    assert cache.get("0", (pb.CLIP_POOLED,)) is not None


def test_replacing_counts_once_and_too_large_is_not_kept():
    cache = Cache(5000, "model")
    cache.put("k", {pb.SAM: entry(300)})
    cache.put("k", {pb.SAM: entry(200)})
    assert cache.size == 400
    cache.put("huge", {pb.SAM: entry(100_000)})
    assert cache.get("huge", (pb.SAM,)) is None
    assert cache.size == 400


def test_without_room_nothing_is_kept():
    cache = Cache(0, "model")
    cache.put("k", entries())
    assert cache.get("k", (pb.CLIP_POOLED,)) is None
    assert cache.size == 0


class Work:
    def __init__(self) -> None:
        self.calls = 0
        self.cancelled = 0
        self.go = asyncio.Event()
        self.failure: Exception | None = None

    async def __call__(self) -> int:
        self.calls += 1
        call = self.calls
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.failure:
            raise self.failure
        return call


async def test_the_same_at_the_same_time_is_done_once():
    flights, work = SingleFlight[int](), Work()
    calls = [asyncio.create_task(flights.run("k", work)) for _ in range(10)]
    other = asyncio.create_task(flights.run("other", work))
    await asyncio.sleep(0)
    work.go.set()
    assert await asyncio.gather(*calls) == [1] * 10
    assert await other == 2
    assert await flights.run("k", work) == 3  # later is done again


async def test_a_failure_reaches_all_and_is_not_kept():
    flights, work = SingleFlight[int](), Work()
    work.failure = ValueError("broken")
    work.go.set()
    results = await asyncio.gather(
        flights.run("k", work), flights.run("k", work), return_exceptions=True
    )
    assert [str(result) for result in results] == ["broken", "broken"]
    work.failure = None
    assert await flights.run("k", work) == 2


async def test_a_cancelled_caller_leaves_the_shared_work_alone():
    flights, work = SingleFlight[int](), Work()
    first = asyncio.create_task(flights.run("k", work))
    second = asyncio.create_task(flights.run("k", work))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    work.go.set()
    assert await second == 1
    assert (work.calls, work.cancelled) == (1, 0)


async def test_work_that_nobody_waits_for_is_cancelled_and_a_newcomer_starts_afresh():
    flights, work = SingleFlight[int](), Work()
    calls = [asyncio.create_task(flights.run("k", work)) for _ in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    newcomer = asyncio.create_task(flights.run("k", work))
    await asyncio.sleep(0)
    work.go.set()
    assert await newcomer == 2
    assert work.cancelled == 1
