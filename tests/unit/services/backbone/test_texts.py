"""Texts are embedded in runs, which wait in the queue of the encoder like images."""

import asyncio
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from samclip_core.errors import DeadlineExceeded, Overloaded
from services.backbone import app, embedder, texts
from services.batching import admission, queue
from services.batching.priority import Priority
from services.request.context import Caller, RequestContext
from tests.fake_model import FakeModel


class Tower(FakeModel):
    """A model that notes its runs of texts, each of which takes ``per_text`` on the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = SimpleNamespace(now=1000.0)
        self.per_text = 0.001
        self.runs: list[list[str]] = []

    def embed_tokens(self, tokens):
        self.runs.append(list(tokens))
        self.running.set()
        assert self._free.wait(30)
        self.clock.now += self.per_text * len(tokens)
        return super().embed_tokens(tokens)

    @property
    def sizes(self) -> list[int]:
        return [len(run) for run in self.runs]


@pytest.fixture
def tower(monkeypatch) -> Tower:
    tower = Tower()
    for module in (admission, queue, embedder, texts):
        monkeypatch.setattr(module, "monotonic", lambda: tower.clock.now)
    return tower


@pytest.fixture
async def backbone(tower, settings):
    backbone = app.Backbone(settings, tower)
    yield backbone
    tower.release()
    await backbone.close()


def embed(backbone, *texts: str, tenant="", within_s=60.0) -> asyncio.Task:
    """Send texts of a tenant. The deadline is on the clock of the queue."""
    priority = Priority(backbone.embedder.model.clock.now + within_s, tenant=tenant)
    context = RequestContext(caller=Caller(tenant=tenant), priority=priority)
    return asyncio.create_task(backbone.embedder.embed_text(context, texts))


def many(count: int) -> list[str]:
    return [f"text {number}" for number in range(count)]


async def running(tower: Tower) -> None:
    await asyncio.to_thread(tower.running.wait, 30)


async def test_texts_do_not_wait_for_images_that_are_being_decoded(backbone, tower):
    """No image can join their run, and the device would be idle meanwhile."""
    with backbone.embedder.queue.coming(Priority()):  # it never comes: the clock stands still
        async with asyncio.timeout(30):
            await embed(backbone, "a cat")
    assert tower.sizes == [1]


async def test_texts_are_tokenised_in_another_thread_than_the_device(backbone, tower, monkeypatch):
    names = {}

    def noted(name, function):
        def call(argument):
            names[name] = threading.current_thread().name.split("_")[0]
            return function(argument)

        return call

    for name in ("tokenize", "embed_tokens"):
        monkeypatch.setattr(tower, name, noted(name, getattr(tower, name)))
    await embed(backbone, "a text")
    assert names == {"tokenize": "decode", "embed_tokens": "device"}


async def test_runs_grow_and_shrink_with_the_time_they_take(backbone, tower):
    rows = await embed(backbone, *many(8 + 16 + 32 + 64 + 64))
    assert tower.sizes == [8, 16, 32, 64, 64]
    np.testing.assert_allclose(rows, FakeModel().embed_text(many(184)), atol=1e-6)
    tower.runs.clear()
    tower.per_text = 1.0
    await embed(backbone, *many(64 + 32 + 16 + 8 + 8), within_s=1000)
    assert tower.sizes == [64, 32, 16, 8, 8]


async def test_texts_of_a_caller_who_hung_up_are_not_embedded(backbone, tower):
    tower.hold()
    call = embed(backbone, *many(1000))
    await running(tower)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    tower.release()
    await embed(backbone, "another")
    assert tower.sizes == [texts.FEWEST_TEXTS, 1]


async def test_another_tenant_gets_its_turn_after_the_run_at_the_device(backbone, tower):
    tower.hold()
    calls = [embed(backbone, *many(100), tenant="ann") for _ in range(5)]
    await running(tower)
    while len(backbone.embedder.queue) < 4:
        await asyncio.sleep(0.001)
    calls.append(embed(backbone, "a cat", tenant="bob"))
    while len(backbone.embedder.queue) < 5:
        await asyncio.sleep(0.001)
    tower.release()
    await asyncio.gather(*calls)
    assert tower.runs.index(["a cat"]) == 1


async def test_a_small_request_gets_its_turn_between_two_runs_of_a_large_one(backbone, tower):
    tower.hold()
    large = embed(backbone, *many(1000))
    await running(tower)
    small = embed(backbone, "a cat")
    while not len(backbone.embedder.queue):
        await asyncio.sleep(0.001)
    tower.release()
    await asyncio.gather(large, small)
    assert tower.runs.index(["a cat"]) <= 2


async def test_texts_that_cannot_be_embedded_in_time_are_refused_before_the_first_run(
    backbone, tower
):
    tower.per_text = 1.0
    await embed(backbone, *many(8))
    tower.runs.clear()
    with pytest.raises(DeadlineExceeded, match=r"too short for 100 s of work: send less at"):
        await embed(backbone, *many(100))
    tower.hold()
    first = embed(backbone, *many(30))
    await running(tower)
    with pytest.raises(Overloaded, match="the queue takes about"):
        await embed(backbone, *many(30))  # besides what is left of the other request
    tower.release()
    await first
    assert sum(tower.sizes) == 30


async def test_a_slow_run_refuses_later_texts_for_seconds_only(backbone, tower):
    tower.per_text = 5.0  # of a machine that was busy
    await embed(backbone, *many(8))
    tower.per_text = 0.01
    with pytest.raises(DeadlineExceeded):
        await embed(backbone, *many(100))
    tower.clock.now += 10
    await embed(backbone, *many(100))
    await embed(backbone, *many(1000))


async def test_texts_that_need_most_of_the_time_are_embedded_if_the_device_is_idle(backbone, tower):
    tower.per_text = 0.05
    await embed(backbone, *many(8))
    assert len(await embed(backbone, *many(1000), within_s=55)) == 1000
