"""Images become embeddings once: by batches, sides, tenants and callers who give up."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from samclip.v1 import samclip_pb2 as pb

from samclip_core.config import TaskSizes
from samclip_core.errors import (
    ImageTooLarge,
    InvalidImage,
    InvalidRequest,
    KeyUnknown,
    Overloaded,
)
from samclip_core.io.image import image_key
from services.backbone.embedder import Embedded, Embedder
from services.observability import metrics
from services.request.context import KEY, SCOPES, TENANT, Caller, RequestContext
from tests.fake_model import FakeModel
from tests.in_process import ANYBODY, png
from tests.shown import shown

ALL = (pb.SAM, pb.CLIP_DENSE, pb.CLIP_POOLED)


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
async def embedder(model, settings):
    embedder = Embedder(model, settings)
    yield embedder
    model.release()
    await embedder.close()


def embed(embedder: Embedder, *reds: int) -> list[asyncio.Task[Embedded]]:
    """Ask for all outputs of an image per red value, concurrently."""
    return [asyncio.create_task(embedder.embed(ANYBODY, png(red), ALL)) for red in reds]


async def busy(model: FakeModel, embedder: Embedder) -> asyncio.Task:
    """Block the device with one image, so that others have to queue."""
    model.hold()
    model.running.clear()
    (task,) = embed(embedder, 1)
    await asyncio.to_thread(model.running.wait, 30)
    return task


async def queued(embedder: Embedder, count: int) -> None:
    while len(embedder.queue) < count:
        await asyncio.sleep(0.001)


async def test_an_image_gives_all_outputs_as_float16_and_its_size(embedder):
    found = await embedder.embed(ANYBODY, png(100, width=40, height=30), ALL)
    assert found.key == image_key(png(100))
    assert (found.geometry.width, found.geometry.height) == (40, 30)
    assert not found.cached
    assert [found.entries[output].array.shape for output in ALL] == [(4, 4, 4), (4, 2, 2), (4,)]
    assert {entry.array.dtype for entry in found.entries.values()} == {np.dtype(np.float16)}
    np.testing.assert_allclose(found.entries[pb.SAM].array, 100, atol=1)


async def test_the_second_time_it_comes_from_the_cache_undecoded(embedder, model):
    image = png(100)
    await embedder.embed(ANYBODY, image, ALL)
    decoded = shown(metrics.STAGE_SECONDS.labels("decode"))
    again = await embedder.embed(ANYBODY, image, (pb.CLIP_POOLED,))
    by_key = await embedder.embed(ANYBODY, image_key(image), ALL)
    assert again.cached
    assert by_key.cached
    assert list(again.entries) == [pb.CLIP_POOLED]
    assert model.batches == [1]
    assert shown(metrics.STAGE_SECONDS.labels("decode")) == decoded


async def test_an_unknown_key_asks_for_the_image(embedder):
    for key in ("0" * 64, "", "no such key"):
        with pytest.raises(KeyUnknown, match="send the image"):
            await embedder.embed(ANYBODY, key, ALL)


async def test_neighbours_of_a_broken_image_in_a_batch_are_answered(embedder, model):
    first = await busy(model, embedder)
    good = [png(50), png(60), png(70)]
    bad = [b"not an image", png(80)[:200], b"", b"GIF89a" + bytes(20), b"RIFF....WEBPVP8 "]
    calls = [asyncio.create_task(embedder.embed(ANYBODY, image, ALL)) for image in good + bad]
    await queued(embedder, len(good))
    model.release()
    results = await asyncio.gather(*calls, return_exceptions=True)
    await first
    reds = [float(result.entries[pb.CLIP_POOLED].array[0]) for result in results[:3]]
    np.testing.assert_allclose(reds, [50, 60, 70], atol=1)
    assert all(isinstance(result, InvalidImage) for result in results[3:])
    assert sum(model.batches) == 4


async def test_limits_hold_before_decoding(model, settings):
    small = settings.model_copy(update={"max_image_bytes": 500, "max_image_pixels": 1000})
    embedder = Embedder(model, small)
    with pytest.raises(ImageTooLarge):
        await embedder.embed(ANYBODY, png(1, 100, 100), ALL)
    embedder = Embedder(model, settings.model_copy(update={"max_image_pixels": 1000}))
    with pytest.raises(InvalidImage, match="1,200 pixels"):
        await embedder.embed(ANYBODY, png(1, 40, 30), ALL)
    assert model.batches == []


async def as_bulk(embedder: Embedder, image: bytes) -> Embedded:
    return await embedder.embed(ANYBODY.in_bulk(), image, ALL)


async def test_bulk_work_lets_others_pass_until_one_of_them_wants_the_same(model, settings):
    embedder = Embedder(model, settings.model_copy(update={"max_batch_size": 1}))
    first = await busy(model, embedder)
    done: list[int] = []
    bulk = [asyncio.create_task(as_bulk(embedder, png(red))) for red in (50, 60)]
    await queued(embedder, 2)
    joined, other = embed(embedder, 60, 70)
    await queued(embedder, 3)
    for red, task in zip((50, 60, 70), (*bulk, other), strict=True):
        task.add_done_callback(lambda _, red=red: done.append(red))
    model.release()
    await asyncio.gather(first, *bulk, joined, other)
    assert done == [60, 70, 50]
    assert not embedder._priorities
    await embedder.close()


async def test_what_nobody_waits_for_is_not_encoded_and_what_was_encoded_is_kept(embedder, model):
    first = await busy(model, embedder)
    calls = embed(embedder, *range(100, 105))
    await queued(embedder, 5)
    for call in (first, *calls[:4]):
        call.cancel()
    model.release()
    await asyncio.gather(first, *calls, return_exceptions=True)
    assert sum(model.batches) == 2
    assert (await embedder.embed(ANYBODY, png(1), ALL)).cached
    assert not (await embedder.embed(ANYBODY, png(200), ALL)).cached


class Small(FakeModel):
    """A model whose device has memory for two images."""

    fits = 2

    def encode_batch(self, batch):
        if len(batch) > self.fits:
            self.batches.append(len(batch))
            raise MemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return super().encode_batch(batch)


async def test_a_batch_that_does_not_fit_into_memory_is_split(settings):
    model = Small()
    embedder = Embedder(model, settings)
    first = await busy(model, embedder)
    calls = embed(embedder, 50, 60, 70, 80)
    await queued(embedder, 4)
    model.release()
    found = await asyncio.gather(*calls)
    await first
    reds = [float(one.entries[pb.CLIP_POOLED].array[0]) for one in found]
    np.testing.assert_allclose(reds, [50, 60, 70, 80], atol=1)
    assert model.batches == [1, 4, 2, 2]
    await embedder.close()


async def test_an_image_that_does_not_fit_alone_is_refused_for_now(settings):
    model = Small()
    model.fits = 0
    embedder = Embedder(model, settings)
    with pytest.raises(Overloaded, match="out of memory for even one image"):
        await embedder.embed(ANYBODY, png(1), ALL)
    model.fits = 1
    assert not (await embedder.embed(ANYBODY, png(1), ALL)).cached
    await embedder.close()


@pytest.fixture
async def three_sides(model, settings):
    """An embedder whose tasks have the sides 64, 96 and 128, and whose masks have 32."""
    sizes = TaskSizes(classify=64, semantic=96, retrieval=128)
    model.config = replace(model.config, task_sizes=sizes)
    embedder = Embedder(model, settings)
    yield embedder
    model.release()
    await embedder.close()


@pytest.mark.parametrize(
    ("outputs", "size", "used"),
    [
        (ALL, 0, 32),
        ((pb.SAM,), 32, 32),
        ((pb.CLIP_DENSE, pb.CLIP_POOLED), 0, 32),
        ((pb.CLIP_DENSE,), 0, 96),
        ((pb.CLIP_POOLED,), 0, 128),
        ((pb.CLIP_POOLED,), 64, 64),
        ((pb.SAM, pb.CLIP_DENSE), 96, 96),
    ],
)
async def test_outputs_are_computed_at_the_side_that_is_asked_for(
    three_sides, model, outputs, size, used
):
    found = await three_sides.embed(ANYBODY, png(100), outputs, size)
    assert (list(found.entries), found.geometry.size) == (list(outputs), used)
    assert (await three_sides.embed(ANYBODY, found.key, outputs, used)).cached
    for other in {32, 64, 96, 128} - {used}:
        with pytest.raises(KeyUnknown):
            await three_sides.embed(ANYBODY, found.key, (pb.CLIP_DENSE, pb.CLIP_POOLED), other)
    assert model.batches == [1]


async def test_one_encoding_at_a_side_answers_all_that_needs_it(three_sides, model):
    for outputs in ((pb.CLIP_POOLED,), (pb.CLIP_DENSE,), ALL):
        await three_sides.embed(ANYBODY, png(100), outputs, 32)
    for outputs in ((pb.CLIP_POOLED,), (pb.CLIP_DENSE,)):
        await three_sides.embed(ANYBODY, png(100), outputs, 64)
    assert model.batches == [1, 1]


async def test_a_batch_has_images_of_one_side(three_sides, model):
    first = await busy(model, three_sides)
    calls = [
        asyncio.create_task(three_sides.embed(ANYBODY, png(red), (pb.CLIP_POOLED,), size))
        for red, size in ((50, 64), (60, 96), (70, 64), (80, 96))
    ]
    await queued(three_sides, 4)
    model.release()
    found = await asyncio.gather(first, *calls)
    assert [result.geometry.size for result in found] == [32, 64, 96, 64, 96]
    assert model.batches == [1, 2, 2]


async def test_an_image_is_admitted_by_the_work_of_its_side(three_sides, monkeypatch):
    """A side of 64 has four times the pixels of the masks' 32."""
    works = []
    check = three_sides.queue._admission.check
    monkeypatch.setattr(
        three_sides.queue._admission,
        "check",
        lambda claim, *rest: works.append(claim.work) or check(claim, *rest),
    )
    for size in (32, 64):
        await three_sides.embed(ANYBODY, png(100), (pb.CLIP_POOLED,), size)
    assert works == [1, 1, 1, 4, 4, 4]  # before decoding, while decoding, and in the queue


@pytest.mark.parametrize(
    ("outputs", "size", "message"),
    [
        ((pb.CLIP_POOLED,), 48, "at 32, 64, 96, 128 pixels, not 48"),
        ((pb.CLIP_POOLED,), -1, "not -1"),
        (ALL, 64, "SAM needs size 32 or 96, not 64"),
        ((pb.SAM_FINE,), 0, "has no SAM_FINE"),
    ],
)
async def test_another_side_is_refused(three_sides, model, outputs, size, message):
    with pytest.raises(InvalidRequest, match=message):
        await three_sides.embed(ANYBODY, png(100), outputs, size)
    assert model.batches == []


async def test_the_device_is_probed_on_its_own_thread(embedder, model, monkeypatch):
    monkeypatch.setattr("services.backbone.health_check.EVERY_S", -1)
    await embedder.probe.check()
    assert model.texts == ["a photo"]


async def test_what_another_tenant_has_sent_is_not_found_by_its_key(embedder, model):
    image = png(100)
    headers = {TENANT: "ann", KEY: "ann", SCOPES: "read"}
    ann = RequestContext(caller=Caller.read(headers, True))
    sent = await embedder.embed(ann, image, ALL)
    assert (await embedder.embed(ann, sent.key, ALL)).cached
    bob = RequestContext(caller=Caller.read({**headers, TENANT: "bob"}, True))
    for key in (sent.key, ann.caller.cache_key(sent.key)):
        with pytest.raises(KeyUnknown):
            await embedder.embed(bob, key, ALL)
    assert not (await embedder.embed(bob, image, ALL)).cached
    assert model.batches == [1, 1]


@pytest.mark.parametrize(("batches", "sizes"), [(True, [1, 2, 4, 6]), (False, [1])])
def test_warm_up_runs_every_batch_size(model, settings, batches, sizes):
    model.engine.batches = batches
    Embedder(model, settings.model_copy(update={"max_batch_size": 6})).warm_up()
    assert model.batches == sizes
    assert model.texts


async def test_an_engine_that_gains_nothing_from_batches_gets_one_image_per_run(model, settings):
    model.engine.batches = False
    embedder = Embedder(model, settings)
    first = await busy(model, embedder)
    calls = embed(embedder, 50, 60, 70)
    await queued(embedder, 2)  # one more is at the device, beside the one that runs
    embedder.tune(settings)
    model.release()
    await asyncio.gather(first, *calls)
    assert model.batches == [1] * 4
    await embedder.close()


async def test_an_image_alone_and_in_any_slot_gives_the_same(tiny_model, settings):
    images = [png(red, width, 30, noise=red) for red, width in ((10, 40), (90, 25), (200, 30))]
    alone = Embedder(tiny_model, settings.model_copy(update={"max_batch_size": 1}))
    expected = [(await alone.embed(ANYBODY, image, ALL)).entries for image in images]
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        together = Embedder(tiny_model, settings)
        prepared = [tiny_model.prepare(image) for image in images]
        results = together._execute([prepared[i] for i in order])
        for slot, index in enumerate(order):
            for output in ALL:
                np.testing.assert_allclose(
                    results[slot][output].array.astype(np.float32),
                    expected[index][output].array.astype(np.float32),
                    atol=2e-3,  # entries are float16
                )
