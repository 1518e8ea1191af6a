import asyncio
import uuid

import numpy as np
import pytest
from samclip.v1 import samclip_pb2 as pb

from samclip_core.geometry import Geometry
from services.cache import embedding_cache
from services.cache.embedding_cache import EmbeddingCache
from services.cache.entry import Entry
from services.cache.link import RedisLink
from services.cache.shared import SharedTier
from services.observability import metrics

ALL = (pb.SAM, pb.CLIP_DENSE, pb.CLIP_POOLED)
KEY = "0" * 64


def entries(stored_as: str = "float16") -> dict:
    random = np.random.default_rng(0).normal
    shapes = {pb.SAM: (3, 4, 4), pb.CLIP_DENSE: (2, 2, 2), pb.CLIP_POOLED: (5,)}
    geometry = Geometry(10, 20, 32)
    return {
        output: Entry.of(random(size=shape), geometry, stored_as)
        for output, shape in shapes.items()
    }


def counts(tier: str, outcome: str) -> float:
    return sum(
        metrics.CACHE.labels(tier, pb.Output.Name(output), outcome)._value.get() for output in ALL
    )


@pytest.fixture
async def caches(shared_redis):
    """Two caches with the same contract, as in two processes."""
    contract = f"test-{uuid.uuid4()}"
    caches = [
        EmbeddingCache(2**20, SharedTier(RedisLink(shared_redis.url, 60), contract))
        for _ in range(2)
    ]
    yield caches
    for cache in caches:
        await cache.close()


async def put(cache: EmbeddingCache, made: dict) -> None:
    cache.put(KEY, made)
    await cache._shared._written(KEY)


@pytest.mark.parametrize("stored_as", ["float16", "int8"])
async def test_what_one_process_puts_another_finds_the_same(caches, stored_as):
    await put(caches[0], entries(stored_as))
    found = await caches[1].get(KEY, ALL)
    for output, made in entries(stored_as).items():
        np.testing.assert_array_equal(found[output].array, made.array)


async def test_a_hit_in_redis_fills_the_memory(caches):
    await put(caches[0], entries())
    await caches[1].get(KEY, ALL)
    before = counts("l2", "hit")
    assert await caches[1].get(KEY, ALL)
    assert counts("l2", "hit") == before


async def test_only_what_memory_lacks_is_read_from_redis(caches):
    await put(caches[0], entries())
    caches[1].remember(KEY, {pb.SAM: entries()[pb.SAM]})
    before = counts("l2", "hit")
    assert list(await caches[1].get(KEY, (pb.CLIP_POOLED, pb.SAM))) == [pb.CLIP_POOLED, pb.SAM]
    assert counts("l2", "hit") == before + 1


async def test_reads_of_the_same_at_once_are_one(caches):
    await put(caches[0], entries())
    before = counts("l2", "hit")
    found = await asyncio.gather(*(caches[1].get(KEY, ALL) for _ in range(20)))
    assert all(found)
    assert counts("l2", "hit") == before + 3


async def test_a_part_is_a_miss_of_the_whole(caches):
    await put(caches[0], {pb.SAM: entries()[pb.SAM]})
    assert await caches[1].get(KEY, ALL) is None
    assert await caches[1].get(KEY, (pb.SAM,)) is not None


@pytest.mark.parametrize("key", ["", "no key", "aA" * 32, "0" * 63, "0" * 64 + "}:SAM", "*"])
async def test_what_is_no_image_key_is_not_asked_of_redis(caches, key):
    before = counts("l2", "miss")
    assert await caches[0].get(key, ALL) is None
    assert counts("l2", "miss") == before


async def test_what_is_remembered_stays_in_the_process(caches):
    caches[0].remember(KEY, entries())
    assert await caches[0].get(KEY, ALL)
    assert await caches[1].get(KEY, ALL) is None


async def test_state_of_redis(caches):
    assert await caches[0].state() == "up"
    assert await EmbeddingCache(0).state() == "off"


async def test_the_settings_decide_who_shares(settings, shared_redis):
    digest = str(uuid.uuid4())

    async def of(
        share: bool = True, digest: str = digest, dtype: str = "int8", **update: object
    ) -> EmbeddingCache:
        chosen = {"redis_url": shared_redis.url, "redis_timeout_ms": 60_000, **update}
        return embedding_cache.of_settings(settings.model_copy(update=chosen), 0, digest, 8, share)(
            dtype
        )

    first = await of()
    await put(first, entries())
    same = await of()
    assert await same.get(KEY, ALL)
    others = [
        await of(digest="e"),
        await of(dtype="float16"),
        await of(cache_dtype="int8"),
        await of(share=False),
        await of(redis_url=None),
    ]
    assert [await cache.get(KEY, ALL) for cache in others] == [None] * 5
    for cache in (first, same, *others):
        await cache.close()
