"""The two tiers of the cache: two caches that share a Redis, as in two processes."""

import asyncio
import uuid

import numpy as np
import pytest
from redis.asyncio import Redis
from samclip.v1 import samclip_pb2 as pb

from samclip_core.geometry import Geometry
from services.batching.priority import Priority
from services.cache import embedding_cache, shared
from services.cache.connection import RedisLink
from services.cache.embedding_cache import EmbeddingCache
from services.cache.entry import Entry, name
from services.cache.memory import MemoryTier
from services.cache.shared import LIFETIME_S, SharedTier
from services.observability import metrics
from tests.shown import shown

ALL = (pb.SAM, pb.CLIP_DENSE, pb.CLIP_POOLED)
KEY, OTHER = "0" * 64, "1" * 64


def entries() -> dict:
    random = np.random.default_rng(0).normal
    shapes = {pb.SAM: (3, 4, 4), pb.CLIP_DENSE: (2, 2, 2), pb.CLIP_POOLED: (5,)}
    geometry = Geometry(10, 20, 32)
    return {output: Entry.of(random(size=shape), geometry) for output, shape in shapes.items()}


def count(outcome: str, tier: str = "l2") -> float:
    return sum(shown(metrics.CACHE.labels(tier, pb.Output.Name(output), outcome)) for output in ALL)


@pytest.fixture
async def redis(shared_redis):
    async with Redis(port=shared_redis.port) as client:
        yield client


@pytest.fixture
async def caches(shared_redis):
    contract = f"test-{uuid.uuid4()}"
    caches = [
        EmbeddingCache(MemoryTier(2**20), SharedTier(RedisLink(shared_redis.url, 60), contract))
        for _ in range(2)
    ]
    yield caches
    for cache in caches:
        await cache.close()


@pytest.fixture
def tier(caches) -> SharedTier:
    return caches[1]._shared


async def put(cache: EmbeddingCache, made: dict, key: str = KEY) -> None:
    cache.put(key, made)
    await cache._shared.settled()


async def test_another_process_finds_the_same_entries(caches):
    await put(caches[0], entries())
    found = await caches[1].get(KEY, ALL, Priority())
    for output, made in entries().items():
        np.testing.assert_array_equal(found[output].array, made.array)
        assert found[output].geometry == made.geometry
    assert await caches[1].get(OTHER, ALL, Priority()) is None


async def test_what_memory_lacks_is_read_from_redis_once(caches):
    await put(caches[0], {output: entries()[output] for output in (pb.SAM, pb.CLIP_POOLED)})
    caches[1].keep(KEY, {pb.SAM: entries()[pb.SAM]})
    asked, before = (pb.CLIP_POOLED, pb.SAM), count("hit")
    found = await asyncio.gather(*(caches[1].get(KEY, asked, Priority()) for _ in range(20)))
    found.append(await caches[1].get(KEY, asked, Priority()))  # from memory
    assert [tuple(each) for each in found] == [asked] * 21
    assert count("hit") == before + 1
    assert await caches[1].get(KEY, ALL, Priority()) is None  # without one of its outputs
    caches[0].keep(OTHER, entries())  # stays in its process
    assert await caches[1].get(OTHER, ALL, Priority()) is None


@pytest.mark.parametrize("key", ["", "no key", "aA" * 32, "0" * 63, "0" * 64 + "}:SAM", "*"])
async def test_redis_is_asked_only_for_image_keys(caches, key):
    before = count("miss")
    assert await caches[0].get(key, ALL, Priority()) is None
    assert count("miss") == before


async def test_reads_and_writes_are_counted(caches, tier):
    outcomes = ("hit", "miss", "written", "corrupt")
    before = {outcome: count(outcome) for outcome in outcomes}
    await tier.get(KEY, ALL, Priority())
    await put(caches[0], entries())
    await tier.get(KEY, ALL, Priority())
    after = {outcome: count(outcome) - before[outcome] for outcome in outcomes}
    assert after == {"hit": 3, "miss": 3, "written": 3, "corrupt": 0}


async def test_maps_expire_before_vectors(caches, tier, redis):
    await put(caches[0], entries())
    left = [await redis.ttl(name(tier._contract, KEY, output)) for output in ALL]
    for seconds, output in zip(left, ALL, strict=True):
        assert 0 < seconds <= LIFETIME_S[output]
    assert left == sorted(left)
    assert left[0] < left[2]


@pytest.mark.parametrize("damage", ["changed", "another output", "another image", "another kind"])
async def test_a_damaged_entry_is_a_miss_until_it_is_written_again(caches, tier, redis, damage):
    await put(caches[0], entries())
    await put(caches[0], entries(), OTHER)
    sam, vector = (name(tier._contract, KEY, output) for output in (pb.SAM, pb.CLIP_POOLED))
    match damage:
        case "changed":
            await redis.setrange(sam, 100, b"x")
        case "another output":
            await redis.copy(vector, sam, replace=True)
        case "another image":
            await redis.copy(name(tier._contract, OTHER, pb.SAM), sam, replace=True)
        case "another kind":
            await redis.delete(sam)
            await redis.rpush(sam, b"x")
    before = count("corrupt")
    assert list(await tier.get(KEY, ALL, Priority())) == [pb.CLIP_DENSE, pb.CLIP_POOLED]
    assert count("corrupt") == before + (damage != "another kind")
    await put(caches[0], entries())
    assert list(await tier.get(KEY, ALL, Priority())) == list(ALL)


async def test_pending_writes_are_bounded_and_further_entries_dropped(tier, monkeypatch):
    size = sum(made.array.nbytes for made in entries().values())
    monkeypatch.setattr(shared, "WRITE_BYTES", 2 * size)
    before = count("write_dropped")
    for key in range(5):
        tier.put(f"{key:064}", entries())
    assert count("write_dropped") == before + 9
    assert tier._writing_bytes == 2 * size
    await tier.settled()
    assert tier._writing_bytes == 0
    found = [len(await tier.get(f"{key:064}", ALL, Priority())) for key in range(5)]
    assert found == [3, 3, 0, 0, 0]


async def test_the_state_of_redis(caches):
    assert await caches[0].state() == "up"
    assert await EmbeddingCache(MemoryTier(0)).state() == "off"
    nowhere = EmbeddingCache(MemoryTier(0), SharedTier(RedisLink("redis://127.0.0.1:1", 60), "c"))
    assert await nowhere.state() == "down"
    assert await nowhere.get(KEY, ALL, Priority()) is None
    await nowhere.close()


async def test_the_settings_and_the_checkpoint_decide_who_shares(settings, shared_redis):
    digest = str(uuid.uuid4())

    def of(
        share: bool = True, digest: str = digest, dtype: str = "int8", **update: object
    ) -> EmbeddingCache:
        chosen = {"redis_url": shared_redis.url, "redis_timeout_ms": 60_000, **update}
        return embedding_cache.of_settings(
            settings.model_copy(update=chosen), MemoryTier(0), digest, 8, share
        )(dtype)

    first = of()
    await put(first, entries())
    same = of()
    assert await same.get(KEY, ALL, Priority())
    others = [
        of(digest="e"),
        of(dtype="float16"),
        of(share=False),
        of(redis_url=None),
    ]
    assert [await cache.get(KEY, ALL, Priority()) for cache in others] == [None] * 4
    for cache in (first, same, *others):
        await cache.close()
