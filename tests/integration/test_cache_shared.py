import uuid

import numpy as np
import pytest
from redis.asyncio import Redis
from samclip.v1 import samclip_pb2 as pb

from samclip_core.geometry import Geometry
from services.cache import shared
from services.cache.entry import Entry, name
from services.cache.link import RedisLink
from services.cache.shared import LIFETIME_S, SharedTier
from services.observability import metrics

ALL = (pb.SAM, pb.CLIP_DENSE, pb.CLIP_POOLED)
KEY, OTHER = "0" * 64, "1" * 64


def entry(fill: float, *shape: int) -> Entry:
    return Entry.of(np.full(shape, fill, np.float32), Geometry(10, 20, 32), "float16")


def entries(fill: float = 1.0) -> dict:
    return {
        pb.SAM: entry(fill, 3, 4, 4),
        pb.CLIP_DENSE: entry(fill, 2, 2, 2),
        pb.CLIP_POOLED: entry(fill, 5),
    }


def count(outcome: str, output: str = "SAM") -> float:
    return metrics.CACHE.labels("l2", output, outcome)._value.get()


@pytest.fixture
async def redis(shared_redis):
    async with Redis(port=shared_redis.port) as client:
        yield client


@pytest.fixture
async def tier(shared_redis):
    tier = SharedTier(RedisLink(shared_redis.url, 60), f"test-{uuid.uuid4()}")
    yield tier
    await tier.close()


async def test_what_is_put_is_found_by_others(tier, shared_redis):
    tier.put(KEY, entries())
    await tier._written(KEY)
    other = SharedTier(RedisLink(shared_redis.url, 60), tier._contract)
    found = await other.get(KEY, ALL)
    assert list(found) == list(ALL)
    for output, made in entries().items():
        np.testing.assert_array_equal(found[output].array, made.array)
        assert found[output].geometry == made.geometry
    assert await other.get(OTHER, ALL) == {}
    await other.close()


async def test_look_ups_and_writes_are_counted(tier, redis):
    before = {outcome: count(outcome) for outcome in ("hit", "miss", "written", "corrupt")}
    await tier.get(KEY, ALL)
    tier.put(KEY, entries())
    await tier._written(KEY)
    await tier.get(KEY, ALL)
    after = {outcome: count(outcome) - before[outcome] for outcome in before}
    assert after == {"hit": 1, "miss": 1, "written": 1, "corrupt": 0}


async def test_every_entry_has_its_lifetime(tier, redis):
    tier.put(KEY, entries())
    await tier._written(KEY)
    left = [await redis.ttl(name(tier._contract, KEY, output)) for output in ALL]
    for seconds, output in zip(left, ALL, strict=True):
        assert 0 < seconds <= LIFETIME_S[output]
    assert left == sorted(left)
    assert left[0] < left[2]  # maps expire before vectors


async def test_another_contract_finds_nothing(tier, shared_redis):
    tier.put(KEY, entries())
    await tier._written(KEY)
    other = SharedTier(RedisLink(shared_redis.url, 60), "another")
    assert await other.get(KEY, ALL) == {}
    await other.close()


async def test_an_entry_moved_to_anothers_name_is_a_miss(tier, redis):
    tier.put(KEY, entries())
    await tier._written(KEY)
    before = count("corrupt")
    for contract, key in ((tier._contract, OTHER), ("another", KEY)):
        await redis.copy(name(tier._contract, KEY, pb.SAM), name(contract, key, pb.SAM))
    assert await tier.get(OTHER, (pb.SAM,)) == {}
    assert count("corrupt") == before + 1
    await redis.copy(
        name(tier._contract, KEY, pb.CLIP_POOLED), name(tier._contract, KEY, pb.SAM), replace=True
    )
    assert list(await tier.get(KEY, ALL)) == [pb.CLIP_DENSE, pb.CLIP_POOLED]


async def test_a_damaged_entry_is_a_miss_until_it_is_written_again(tier, redis):
    tier.put(KEY, entries())
    await tier._written(KEY)
    await redis.setrange(name(tier._contract, KEY, pb.SAM), 100, b"x")
    assert list(await tier.get(KEY, ALL)) == [pb.CLIP_DENSE, pb.CLIP_POOLED]
    tier.put(KEY, entries(2.0))
    await tier._written(KEY)
    assert (await tier.get(KEY, ALL))[pb.SAM].array[0, 0, 0] == 2


async def test_a_value_of_another_kind_is_a_miss(tier, redis):
    await redis.rpush(name(tier._contract, KEY, pb.SAM), b"x")
    assert await tier.get(KEY, ALL) == {}


async def test_what_would_exceed_the_bytes_in_flight_is_dropped(tier, monkeypatch):
    size = sum(made.array.nbytes for made in entries().values())
    monkeypatch.setattr(shared, "WRITE_BYTES", 2 * size)
    before = count("write_dropped")
    for key in range(5):
        tier.put(f"{key:064}", entries())
    assert count("write_dropped") == before + 3
    assert tier._writing_bytes == 2 * size
    for key in range(2):
        await tier._written(f"{key:064}")
    assert tier._writing_bytes == 0
    found = [len(await tier.get(f"{key:064}", ALL)) for key in range(5)]
    assert found == [3, 3, 0, 0, 0]


async def test_its_state(tier):
    assert await tier.state() == "up"
    nowhere = SharedTier(RedisLink("redis://127.0.0.1:1", 60), "c")
    assert await nowhere.state() == "down"
    assert await nowhere.get(KEY, ALL) == {}
    await nowhere.close()
