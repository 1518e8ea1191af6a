"""The shared mask decoder, with random weights and a device that tests can block."""

import asyncio
import threading
from contextlib import ExitStack
from time import monotonic

import numpy as np
import pytest

from samclip_core.answers.everything import SAM
from samclip_core.answers.sam_head import SamHead
from samclip_core.answers.steps import Steps, run
from samclip_core.engine import load as load_engine
from samclip_core.errors import DeadlineExceeded, Overloaded
from samclip_core.geometry import Geometry
from samclip_core.io import checkpoint
from samclip_core.types import ImageFeatures, MaskSet, Prompt
from services.batching.decoder import Decoder
from services.batching.priority import Priority
from tests import fakes
from tests.unit.services.batching.device import BULK, NOW

CLICK, BOX = Prompt(points=((20, 15),)), Prompt(box=(5, 5, 30, 25))
TWO = Prompt(points=((8, 9), (30, 12)), negative=(False, True))


class Watched(SamHead):
    """A SAM head that records the number of prompts per image of each run."""

    batches: list[list[int]]

    def decode_batch(self, requests, multimask=True):
        if requests:
            self.batches.append([len(prompts) for _, prompts in requests])
        return super().decode_batch(requests, multimask)


@pytest.fixture
def decoder(settings, tiny_checkpoint) -> Decoder:
    engine = load_engine(tiny_checkpoint, parts=("mask_decoder",))
    head = Watched(checkpoint.read_config(tiny_checkpoint), engine)
    head.batches = []
    return Decoder(head, settings.model_copy(update={"max_prompt_batch": 4}))


def features(decoder: Decoder, seed: int, width: int = 40, height: int = 30) -> ImageFeatures:
    config = decoder.sam_head.config
    shape = (config.embed_dim, config.grid, config.grid)
    sam_Dhw = np.random.default_rng(seed).normal(size=shape).astype(np.float16)
    return ImageFeatures(Geometry(height, width, config.image_size), sam_Dhw)


async def together(decoder: Decoder, *questions: tuple, priority: Priority | None = None) -> list:
    """Send the requests while the device is busy, and return their answers or errors."""
    gate = threading.Event()
    decoder._device.submit(gate.wait, 60)
    first = asyncio.create_task(decoder.segment(NOW, features(decoder, 99), [CLICK], False))
    await asyncio.sleep(0)
    asked = (decoder.segment(priority or NOW, *question) for question in questions)
    calls = [*map(asyncio.create_task, asked)]
    await asyncio.sleep(0)
    gate.set()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    await first
    assert decoder.sam_head.batches.pop(0) == [1]
    return answers


def assert_same(one: MaskSet, other: MaskSet) -> None:
    np.testing.assert_allclose(one.logits_Mhw, other.logits_Mhw, atol=1e-4, rtol=0)
    np.testing.assert_allclose(one.predicted_iou_M, other.predicted_iou_M, atol=1e-4, rtol=0)
    for ours, theirs in zip(one.masks_MHW, other.masks_MHW, strict=True):
        union = (ours | theirs).sum()
        assert union == 0 or (ours & theirs).sum() / union >= 0.999


@pytest.mark.parametrize(
    ("size", "prompts", "batches"),
    [
        (4, (1, 1, 1, 1), [[1, 1, 1, 1]]),
        (4, (2, 1, 2, 3), [[2, 1], [2], [3]]),
        (2, (1, 1, 1), [[1, 1], [1]]),
    ],
)
async def test_prompts_of_different_images_share_a_batch(decoder, size, prompts, batches):
    decoder.tune(size)
    assert decoder.size == size
    asked = [(features(decoder, seed), [CLICK] * n, False) for seed, n in enumerate(prompts)]
    assert [len(answer) for answer in await together(decoder, *asked)] == [*prompts]
    assert decoder.sam_head.batches == batches


async def test_an_answer_does_not_depend_on_its_neighbours(decoder):
    questions = [
        (features(decoder, 1), [CLICK], True),
        (features(decoder, 2, 60, 31), [BOX], False),
        (features(decoder, 3, 31, 60), [TWO], True),
        (features(decoder, 1), [CLICK], False),
        (features(decoder, 4), [TWO, CLICK], False),
    ]
    for order in (questions, questions[::-1]):
        for question, answer in zip(order, await together(decoder, *order), strict=True):
            alone = SamHead.segment(decoder.sam_head, *question)
            for ours, theirs in zip(answer, alone, strict=True):
                assert_same(ours.enlarge_all(), theirs)
        decoder.sam_head.batches.clear()


async def test_small_masks_are_encoded_in_the_thread_that_decodes_them(decoder):
    names = []

    def encode(logits):
        names.append(threading.current_thread().name.split("_")[0])
        return len(logits.logits_Mhw)

    image = features(decoder, 1)
    assert await decoder.segment(NOW, image, [CLICK, BOX], True, encode) == [3, 3]
    assert names == ["device"] * 2


def everything(decoder: Decoder, points_per_side: int) -> Steps:
    return fakes.everything(decoder.terms, features(decoder, 7), points_per_side, SAM)


async def test_a_click_passes_between_two_steps_of_bulk_work(decoder):
    gate = threading.Event()
    decoder._device.submit(gate.wait, 60)
    bulk = asyncio.create_task(decoder.run_long(BULK, everything(decoder, 6)))
    while not decoder._batcher._admission.running:
        await asyncio.sleep(0.001)
    click = asyncio.create_task(decoder.segment(NOW, features(decoder, 1), [CLICK], False))
    await asyncio.sleep(0)
    gate.set()
    await click
    assert not bulk.done()
    assert len(decoder.sam_head.batches) <= 3  # a step, the click, and perhaps the next step
    await bulk
    assert sorted(map(sum, decoder.sam_head.batches)) == [1, *[4] * 9]


async def test_few_bulk_works_take_part_at_a_time(decoder):
    gate = threading.Event()
    decoder._device.submit(gate.wait, 60)
    works = [asyncio.create_task(decoder.run_long(BULK, everything(decoder, 2))) for _ in range(5)]
    while not decoder._batcher._admission.running:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    assert len(decoder._batcher) == 0
    gate.set()
    await asyncio.gather(*works)
    assert decoder.sam_head.batches == [[4]] * 5


async def test_steps_get_what_the_library_finds(decoder):
    found = await decoder.run(NOW, everything(decoder, 4))
    expected = run(everything(decoder, 4), decoder.sam_head)
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.mask.logits_hw, theirs.mask.logits_hw, atol=1e-2)


async def test_work_without_time_left_asks_nothing(decoder):
    with pytest.raises(DeadlineExceeded):
        await decoder.run_long(Priority(0.0, bulk=True), everything(decoder, 4))
    assert decoder.sam_head.batches == []


async def ended_in_order(decoder: Decoder, tenants: str, bulk: bool) -> str:
    """Run a search for each tenant while the device is busy; return whose ended, in order."""
    gate, ended = threading.Event(), []
    decoder._device.submit(gate.wait, 60)

    async def search(tenant: str) -> None:
        priority = Priority(tenant=tenant, bulk=bulk)
        await decoder.run_long(priority, everything(decoder, 4))
        ended.append(tenant)

    searches = [asyncio.create_task(search(tenant)) for tenant in tenants]
    await asyncio.sleep(0.05)
    gate.set()
    await asyncio.gather(*searches)
    return "".join(ended)


@pytest.mark.parametrize("bulk", [False, True])
async def test_a_search_of_another_tenant_does_not_wait_for_all_of_one(decoder, bulk):
    order = await ended_in_order(decoder, "a" * 12 + "b", bulk)
    assert order.index("b") <= decoder._long[bulk]._at_once + 1


async def test_searches_whose_pictures_are_being_prepared_count_as_waiting(decoder):
    await decoder.run_long(NOW, everything(decoder, 4))
    decoder._long[False]._admission.pace_s = 10.0
    ann, soon = Priority(tenant="ann"), monotonic() + 40
    with ExitStack() as coming:
        for _ in range(9):
            coming.enter_context(decoder.coming(ann))
        with pytest.raises(Overloaded, match="the queue takes about"):
            coming.enter_context(decoder.coming(Priority(soon, tenant="ann")))
        coming.enter_context(decoder.coming(Priority(soon, tenant="bob")))


async def test_a_search_that_fails_leaves_its_place(decoder):
    def failing() -> Steps:
        yield None
        raise ZeroDivisionError

    for _ in range(2 * decoder._long[False]._at_once):
        with pytest.raises(ZeroDivisionError):
            await decoder.run_long(NOW, failing())
    assert await decoder.run_long(NOW, everything(decoder, 4))


async def test_searches_that_are_cancelled_run_no_further_and_leave_their_places(decoder):
    steps = []

    def endless(number: int) -> Steps:
        while True:
            steps.append(number)
            yield None

    searches = [asyncio.create_task(decoder.run_long(NOW, endless(n))) for n in range(6)]
    while len(steps) < 20:
        await asyncio.sleep(0.001)
    for search in searches:
        search.cancel()
    await asyncio.wait(searches)
    assert {*steps} == {*range(decoder._long[False]._at_once)}
    assert await decoder.run_long(NOW, everything(decoder, 4))
    assert not decoder._long[False]._admission.running
