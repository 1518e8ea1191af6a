"""One encoding per image among all processes: two embedders that share only a Redis."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from redis.asyncio import Redis
from samclip.v1 import samclip_pb2 as pb

from samclip_core.config import TaskSizes
from samclip_core.io.image import image_key
from services.backbone.embedder import Embedder
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
async def embedders(settings, own_redis):
    chosen = {"redis_url": own_redis.url, "redis_timeout_ms": 60_000}
    embedders = [Embedder(FakeModel(), settings.model_copy(update=chosen)) for _ in range(2)]
    yield embedders
    for embedder in embedders:
        embedder.model.release()
        await embedder.close()


@pytest.mark.parametrize("maps", [64, SIZE], ids=["of maps", "of vectors alone"])
async def test_at_another_side_all_replicas_share_one_encoding(embedders, redis, maps):
    for embedder in embedders:
        sizes = TaskSizes(classify=64, semantic=maps, retrieval=64)
        embedder.model.config = replace(embedder.model.config, task_sizes=sizes)
    outputs = (pb.CLIP_POOLED, pb.CLIP_DENSE)[: 2 if maps == 64 else 1]
    calls = (embedders[i % 2].embed(ANYBODY, IMAGE, (outputs[i % len(outputs)],)) for i in range(8))
    assert {found.geometry.size for found in await asyncio.gather(*calls)} == {64}
    assert encodings(embedders) == 1
    names = await redis.keys("samclip:cache:*")
    kept = {"CLIP_POOLED", "CLIP_DENSE"} | ({"SAM"} if maps == 64 else set())  # maps attend to it
    expected = {f"{image_key(IMAGE)}:64}}:{output}" for output in kept}
    assert {name.decode().partition("{")[2] for name in names} == expected


def lease_name(embedder: Embedder) -> str:
    return f"samclip:lease:{embedder.cache._shared._contract}:{{{image_key(IMAGE)}}}"


def encodings(embedders: list[Embedder]) -> int:
    return sum(sum(embedder.model.batches) for embedder in embedders)


async def encoding(embedder: Embedder) -> asyncio.Task:
    """Start an encoding, and block it."""
    embedder.model.hold()
    task = asyncio.create_task(embedder.embed(ANYBODY, IMAGE, ALL))
    await asyncio.to_thread(embedder.model.running.wait, 60)
    return task


async def test_64_identical_misses_on_two_replicas_cost_one_encoding(embedders, redis):
    found = await asyncio.gather(*(embedders[i % 2].embed(ANYBODY, IMAGE, ALL) for i in range(64)))
    assert encodings(embedders) == 1
    for result in found:
        for output in ALL:
            np.testing.assert_array_equal(
                result.entries[output].array, found[0].entries[output].array
            )
    again = await asyncio.gather(*(embedder.embed(ANYBODY, IMAGE, ALL) for embedder in embedders))
    assert all(result.cached for result in again)
    while await redis.exists(lease_name(embedders[0])):  # it is released after the work
        await asyncio.sleep(0.001)
    assert len(await redis.keys("samclip:cache:*")) == 3


async def test_others_wait_for_whoever_encodes(embedders, redis):
    first = await encoding(embedders[0])
    second = asyncio.create_task(embedders[1].embed(ANYBODY, IMAGE, ALL))
    while not await redis.exists(lease_name(embedders[0])):
        await asyncio.sleep(0.001)
    done, _ = await asyncio.wait([second], timeout=0.1)
    assert not done
    embedders[0].model.release()
    results = [await first, await second]
    assert embedders[1].model.batches == []
    np.testing.assert_array_equal(*(result.entries[pb.SAM].array for result in results))


async def test_the_lease_of_a_process_that_crashed_runs_out(embedders, redis):
    await redis.set(lease_name(embedders[0]), "crashed", nx=True, px=300)
    found = await embedders[0].embed(ANYBODY, IMAGE, ALL)
    assert not found.cached
    assert encodings(embedders) == 1


async def test_a_lease_is_renewed_while_there_is_work(embedders, redis, monkeypatch):
    monkeypatch.setattr(shared, "LEASE_MS", 900_000)  # it does not expire during this test
    monkeypatch.setattr(shared, "RENEWED_EVERY_S", 0.01)
    task = await encoding(embedders[0])
    token = await redis.get(lease_name(embedders[0]))
    for _ in range(3):
        assert await redis.pexpire(lease_name(embedders[0]), 450_000)
        while await redis.pttl(lease_name(embedders[0])) <= 450_000:
            await asyncio.sleep(0.001)
        assert await redis.get(lease_name(embedders[0])) == token
    embedders[0].model.release()
    await task


async def test_nobody_takes_away_the_lease_of_another(embedders, redis):
    task = await encoding(embedders[0])
    await redis.set(lease_name(embedders[0]), "another", px=60_000)  # as if ours had expired
    embedders[0].model.release()
    await task
    await embedders[0].cache._shared.settled()
    assert await redis.get(lease_name(embedders[0])) == b"another"


async def test_an_error_is_not_shared_with_other_processes(embedders, redis):
    embedders[0].model.failure = RuntimeError("the device is lost")
    first = await encoding(embedders[0])
    second = asyncio.create_task(embedders[1].embed(ANYBODY, IMAGE, ALL))
    embedders[0].model.release()
    with pytest.raises(RuntimeError):
        await first
    assert not (await second).cached
    assert embedders[1].model.batches == [1]


async def test_a_storm_of_cancelled_callers_leaves_the_others_alone(embedders, redis):
    calls = []
    for round_ in range(20):
        calls += [
            asyncio.create_task(embedder.embed(ANYBODY, IMAGE, ALL)) for embedder in embedders
        ]
        await asyncio.sleep(0)
        if round_ % 2:
            calls[-1].cancel()
    for call in calls[:10]:
        call.cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)
    left = [result for result in results if not isinstance(result, asyncio.CancelledError)]
    assert len(left) >= 20
    assert all(result.key == image_key(IMAGE) for result in left)
    assert encodings(embedders) == 1


async def test_when_all_callers_are_cancelled_the_next_need_not_wait_for_the_lease(
    embedders, redis
):
    for pause_s in (0, 0, 0.001, 0.002, 0.005):
        call = asyncio.create_task(embedders[0].embed(ANYBODY, IMAGE, ALL))
        await asyncio.sleep(pause_s)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    await embedders[0].cache._shared.settled()
    assert not await redis.exists(lease_name(embedders[0]))
    assert (await embedders[1].embed(ANYBODY, IMAGE, ALL)).key == image_key(IMAGE)
