"""Abandoned work is cancelled, and short work overtakes long work."""

import asyncio
import threading

import numpy as np
import pytest
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.sam_head import SamHead
from samclip_core.geometry import Geometry
from services.heads.semantic.app import Semantic
from services.request import wire
from tests.fakes import FakeSamHead, features_of
from tests.in_process import ANYBODY, png

IMAGE = pb.Image(encoded=png())
POINT = pb.Prompt(points=[pb.Point(x=20, y=15)])
CLICK = pb.SegmentRequest(image=IMAGE, prompts=[POINT])
EVERYTHING = pb.SegmentEverythingRequest(image=IMAGE, points_per_side=64)
WIDE = Geometry(640, 1280, 128)
LABELS = ["a", "b", "c"]


class Device:
    """A device that counts its work, and blocks until ``free`` is set."""

    def __init__(self) -> None:
        self.done = 0
        self.held = threading.Event()
        self.free = threading.Event()

    def work(self, amount: int = 1) -> None:
        self.done += amount
        self.held.set()
        assert self.free.wait(120)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self.held.wait, 60)

    async def settled(self) -> int:
        """Unblock the device, wait until all work has ended, and return its total."""
        self.free.set()
        before = -1
        while self.done != before:
            before = self.done
            await asyncio.sleep(0.5)
        return self.done


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch):
    """Replace the mask decoder's device with one that counts prompts."""
    device, answer = Device(), SamHead._answer

    def watched(self, jobs, multimask):
        device.work(len(jobs))
        return answer(self, jobs, multimask)

    monkeypatch.setattr(SamHead, "_answer", watched)
    yield device
    device.free.set()


async def give_up(call, device: Device) -> None:
    """Cancel the call while the device works on it."""
    task = asyncio.create_task(call)
    await device.reached()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


REQUESTS = {
    "SegmentEverything": EVERYTHING,
    "Segment": pb.SegmentRequest(image=IMAGE, prompts=[POINT] * 256),
}


@pytest.mark.parametrize("rpc", REQUESTS)
async def test_after_a_deadline_the_mask_decoder_does_nothing_more(caller, device, settings, rpc):
    code, _ = await caller.refused(rpc, REQUESTS[rpc], timeout=3)
    assert code == "DEADLINE_EXCEEDED"
    assert await device.settled() <= settings.max_prompt_batch


@pytest.mark.parametrize("rpc", REQUESTS)
async def test_after_a_caller_hung_up_the_mask_decoder_does_nothing_more(
    caller, device, settings, rpc
):
    await give_up(caller(rpc, REQUESTS[rpc]), device)
    assert await device.settled() <= settings.max_prompt_batch


async def test_a_click_is_answered_while_64_points_per_side_are_segmented(caller, monkeypatch):
    """Without priorities, the two requests of 4,096 points each would run first."""
    await caller("Segment", CLICK)
    long = [asyncio.create_task(caller("SegmentEverything", EVERYTHING, None)) for _ in range(2)]
    answers = 0
    while not any(task.done() for task in long) and answers < 5:
        await caller("Segment", CLICK, timeout=None)
        answers += 1
    assert answers == 5
    assert not any(task.done() for task in long)
    for task in long:
        task.cancel()
    await asyncio.gather(*long, return_exceptions=True)


class Backbone:
    """A backbone client that returns fixed features, and unit vectors for texts."""

    graphs = ""

    def __init__(self, classes_hw: np.ndarray):
        self.found = features_of(WIDE, classes_hw, len(LABELS))

    async def features(self, context, image, *outputs, **fields):
        return wire.image_info("key", WIDE, cached=True), self.found

    async def class_embeddings(self, context, labels, templates):
        """Return the class of each of LABELS; any other label gets the last class."""
        last = len(LABELS) - 1
        classes = [LABELS.index(label) if label in LABELS else last for label in labels]
        return np.eye(len(LABELS), dtype=np.float32)[classes]


class HeldHead(FakeSamHead):
    """A SAM head whose calls are work of a device."""

    def __init__(self, device: Device):
        objects_ss = np.zeros((64, 64), int)
        objects_ss[5:14, 5:14] = 1
        super().__init__(objects_ss)
        self.device = device

    def segment(self, features, prompts, multimask):
        self.device.work(len(prompts))
        return super().segment(features, prompts, multimask)


def pieces() -> np.ndarray:
    """Return a class map in which the first class consists of isolated cells."""
    y, x = np.mgrid[:16, :16]
    return np.where((y % 3 == 0) & (x % 3 == 0), 0, 1)


@pytest.fixture
def semantic_service(settings):
    device = Device()
    service = Semantic(
        settings.model_copy(update={"max_prompt_batch": 2}), sam_head=HeldHead(device)
    )
    service.backbone = Backbone(pieces())
    yield service, device
    device.free.set()


async def test_refining_ends_when_its_caller_hangs_up(semantic_service):
    service, device = semantic_service
    request = pb.SegmentTextRequest(image=IMAGE, labels=LABELS, refine=True)
    await give_up(service.answer("SegmentText", request, ANYBODY), device)
    assert await device.settled() == 2
    answer = await service.answer("SegmentText", request, ANYBODY)
    assert {region.label for region in answer.regions} == {"a", "b"}
    assert device.done > 10
