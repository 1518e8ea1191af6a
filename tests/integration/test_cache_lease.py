"""One encoding per image among all processes: two engines that share only a Redis."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from redis.asyncio import Redis
from samclip.v1 import samclip_pb2 as pb

from samclip_core.config import TaskSizes
from samclip_core.io.image import image_key
from services.backbone.engine import Engine
from services.cache import shared
from tests.fake_model import SIZE, FakeModel
from tests.in_process import ANYBODY, png

ALL = (pb.SAM, pb.CLIP_DENSE, pb.CLIP_POOLED)
IMAGE = png(100)


@pytest.fixture
async def redis(own_redis):
    async with Redis(port=own_redis.port) as client:
        yield client


@pytest.fixture
async def engines(settings, own_redis):
    chosen = {"redis_url": own_redis.url, "redis_timeout_ms": 60_000}
    engines = [Engine(FakeModel(), settings.model_copy(update=chosen)) for _ in range(2)]
    yield engines
    for engine in engines:
        engine.model.release()
        await engine.close()


@pytest.mark.parametrize("maps", [64, SIZE], ids=["of maps", "of vectors alone"])
async def test_at_another_side_all_replicas_share_one_encoding(engines, redis, maps):
    for engine in engines:
        sizes = TaskSizes(classify=64, semantic=maps, retrieval=64)
        engine.model.config = replace(engine.model.config, task_sizes=sizes)
    outputs = (pb.CLIP_POOLED, pb.CLIP_DENSE)[: 2 if maps == 64 else 1]
    calls = (engines[i % 2].embed(ANYBODY, IMAGE, (outputs[i % len(outputs)],)) for i in range(8))
    assert {found.geometry.size for found in await asyncio.gather(*calls)} == {64}
    assert encodings(engines) == 1
    names = await redis.keys("samclip:cache:*")
    kept = {"CLIP_POOLED", "CLIP_DENSE"} | ({"SAM"} if maps == 64 else set())  # maps attend to it
    expected = {f"{{{image_key(IMAGE)}:64}}:{output}" for output in kept}
    assert {name.decode().partition("-1:")[2] for name in names} == expected


def lease_name(engine: Engine) -> str:
    return f"samclip:lease:{engine.cache._shared._contract}:{image_key(IMAGE)}"


def encodings(engines: list[Engine]) -> int:
    return sum(sum(engine.model.batches) for engine in engines)


async def encoding(engine: Engine) -> asyncio.Task:
    """Start an encoding, and block it."""
    engine.model.hold()
    task = asyncio.create_task(engine.embed(ANYBODY, IMAGE, ALL))
    await asyncio.to_thread(engine.model.running.wait, 60)
    return task


async def test_64_identical_misses_on_two_replicas_cost_one_encoding(engines, redis):
    found = await asyncio.gather(*(engines[i % 2].embed(ANYBODY, IMAGE, ALL) for i in range(64)))
    assert encodings(engines) == 1
    for result in found:
        for output in ALL:
            np.testing.assert_array_equal(
                result.entries[output].array, found[0].entries[output].array
            )
    again = await asyncio.gather(*(engine.embed(ANYBODY, IMAGE, ALL) for engine in engines))
    assert all(result.cached for result in again)


async def test_others_wait_for_whoever_encodes(engines, redis):
    first = await encoding(engines[0])
    second = asyncio.create_task(engines[1].embed(ANYBODY, IMAGE, ALL))
    while not await redis.exists(lease_name(engines[0])):
        await asyncio.sleep(0.001)
    done, _ = await asyncio.wait([second], timeout=0.1)
    assert not done
    engines[0].model.release()
    results = [await first, await second]
    assert engines[1].model.batches == []
    np.testing.assert_array_equal(*(result.entries[pb.SAM].array for result in results))


async def test_the_lease_is_gone_after_the_work(engines, redis):
    await engines[0].embed(ANYBODY, IMAGE, ALL)
    while await redis.exists(lease_name(engines[0])):
        await asyncio.sleep(0.001)
    assert await redis.exists(*[key async for key in redis.scan_iter("samclip:cache:*")]) == 3


async def test_the_lease_of_a_process_that_crashed_runs_out(engines, redis):
    await redis.set(lease_name(engines[0]), "crashed", nx=True, px=300)
    found = await engines[0].embed(ANYBODY, IMAGE, ALL)
    assert not found.cached
    assert encodings(engines) == 1


async def test_a_lease_is_renewed_while_there_is_work(engines, redis, monkeypatch):
    monkeypatch.setattr(shared, "LEASE_MS", 900_000)  # it does not expire during this test
    monkeypatch.setattr(shared, "RENEWED_EVERY_S", 0.01)
    task = await encoding(engines[0])
    token = await redis.get(lease_name(engines[0]))
    for _ in range(3):
        assert await redis.pexpire(lease_name(engines[0]), 450_000)
        while await redis.pttl(lease_name(engines[0])) <= 450_000:
            await asyncio.sleep(0.001)
        assert await redis.get(lease_name(engines[0])) == token
    engines[0].model.release()
    await task


async def test_nobody_takes_away_the_lease_of_another(engines, redis):
    task = await encoding(engines[0])
    await redis.set(lease_name(engines[0]), "another", px=60_000)  # as if ours had expired
    engines[0].model.release()
    await task
    await engines[0].cache._shared.settled()
    assert await redis.get(lease_name(engines[0])) == b"another"


async def test_an_error_is_not_shared_with_other_processes(engines, redis):
    engines[0].model.failure = RuntimeError("the device is lost")
    first = await encoding(engines[0])
    second = asyncio.create_task(engines[1].embed(ANYBODY, IMAGE, ALL))
    engines[0].model.release()
    with pytest.raises(RuntimeError):
        await first
    assert not (await second).cached
    assert engines[1].model.batches == [1]


async def test_a_storm_of_cancelled_callers_leaves_the_others_alone(engines, redis):
    calls = []
    for round_ in range(20):
        calls += [asyncio.create_task(engine.embed(ANYBODY, IMAGE, ALL)) for engine in engines]
        await asyncio.sleep(0)
        if round_ % 2:
            calls[-1].cancel()
    for call in calls[:10]:
        call.cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)
    left = [result for result in results if not isinstance(result, asyncio.CancelledError)]
    assert len(left) >= 20
    assert all(result.key == image_key(IMAGE) for result in left)
    assert encodings(engines) == 1


async def test_when_all_callers_are_cancelled_the_next_need_not_wait_for_the_lease(engines, redis):
    for pause_s in (0, 0, 0.001, 0.002, 0.005):
        call = asyncio.create_task(engines[0].embed(ANYBODY, IMAGE, ALL))
        await asyncio.sleep(pause_s)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    await engines[0].cache._shared.settled()
    assert not await redis.exists(lease_name(engines[0]))
    assert (await engines[1].embed(ANYBODY, IMAGE, ALL)).key == image_key(IMAGE)
