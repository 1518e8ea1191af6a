"""``Local`` gives the answers of the services: every rpc with one answer is asked both ways."""

import gc
import math
import threading
import weakref
from collections.abc import AsyncIterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import DeadlineExceeded, InvalidPrompt, InvalidRequest, KeyUnknown
from samclip_core.io.masks import encode_rle
from samclip_core.model import SamClip
from samclip_core.regions import LARGEST_LOGIT
from services.backbone.app import Backbone
from services.local import Local
from services.request import wire
from tests.in_process import Caller, png
from tests.tiny import make_tiny_checkpoint

IMAGE = pb.Image(encoded=png())
POINTS = pb.Prompt(points=[pb.Point(x=20, y=15), pb.Point(x=3, y=4, negative=True)])
BOX = pb.Box(x_min=5, y_min=5, x_max=30, y_max=25)
TEXT = pb.Prompt(text="a dog", not_texts=["a cat"])
LABELS = ["a dog", "a cat", "grass"]
MASK_HW = np.zeros((30, 40), np.bool_)
MASK_HW[5:20, 8:30] = True
AREA = pb.Area(rle=pb.CocoRle(height=30, width=40, counts=encode_rle(MASK_HW)))
LOGITS_ss = np.random.default_rng(0).normal(0, 4, (64, 64)).astype(np.float32)
OF_PROMPTS = [pb.RLE, pb.PNG, pb.POLYGONS, pb.LOGITS]
REQUESTS = [
    pb.ClassifyRequest(images=[IMAGE, pb.Image(encoded=png(7))], labels=LABELS, top_k=2),
    pb.ClassifyRequest(images=[IMAGE], labels=LABELS, areas=[pb.Area(box=BOX), AREA]),
    pb.SegmentRequest(
        image=IMAGE,
        prompts=[pb.Prompt(points=POINTS.points, mask_input=wire.to_tensor(LOGITS_ss))],
    ),
    pb.SegmentRequest(
        image=IMAGE,
        prompts=[pb.Prompt(mask=AREA.rle), pb.Prompt(mask=AREA.rle, points=POINTS.points, box=BOX)],
    ),
    *(
        pb.SegmentRequest(
            image=IMAGE,
            prompts=[POINTS, TEXT, pb.Prompt(box=BOX)],
            encoding=encoding,
            multimask=True,
            min_score=0,
        )
        for encoding in OF_PROMPTS
    ),
    *(
        pb.SegmentEverythingRequest(
            image=IMAGE, labels=LABELS, min_label_score=0.2, points_per_side=4, encoding=encoding
        )
        for encoding in (*OF_PROMPTS, pb.PANOPTIC)
    ),
    pb.SegmentEverythingRequest(image=IMAGE, tiles=2, points_per_side=4),
    *(
        pb.SegmentTextRequest(
            image=IMAGE, labels=LABELS, background=True, refine=refine, encoding=encoding
        )
        for refine, encoding in enumerate((pb.RLE, pb.PNG, pb.POLYGONS))
    ),
    pb.ExplainRequest(image=IMAGE, label="a dog", others=LABELS[1:]),
    pb.EmbedRequest(image=IMAGE, inline=True),
    pb.EmbedTextRequest(texts=LABELS),
    pb.AskRequest(image=IMAGE, head="parts", encoding=pb.PNG),
    pb.ListHeadsRequest(),
]


@pytest.fixture(scope="module", params=["edge", "pair", "radio"])
def tiny_checkpoint(request, tmp_path_factory) -> Path:
    """Write an ``edge``, a ``radio``, and a pair with MobileSAM whose masks have as many logits."""
    changes = {"image_size": 256} if request.param == "pair" else {}
    return make_tiny_checkpoint(tmp_path_factory.mktemp("one") / "tiny", request.param, **changes)


@pytest.fixture(scope="module")
def tiny_model(tiny_checkpoint: Path) -> SamClip:
    return SamClip.load(tiny_checkpoint)


@pytest.fixture
async def local(tiny_checkpoint, monkeypatch) -> AsyncIterator[Local]:
    # A busy machine embeds texts in smaller runs, whose results are rounded in another way.
    monkeypatch.setattr("services.backbone.texts.RUN_S", math.inf)
    opened = Local(str(tiny_checkpoint), "tests.own_heads:Parts")
    yield opened
    await opened.close()


def rpc_of(request: Message) -> str:
    return type(request).__name__.removesuffix("Request")


async def test_its_messages_are_those_of_the_services(local: Local, caller: Caller) -> None:
    for request in REQUESTS:
        answer, expected = await local.answer(request), await caller(rpc_of(request), request)
        for each in (answer, expected):  # either may have encoded the image for an earlier request
            results = each.results if isinstance(each, pb.ClassifyResponse) else [each]
            for result in results:
                if "image" in result.DESCRIPTOR.fields_by_name:
                    result.image.cached = False
            if isinstance(each, pb.EmbedResponse):
                each.cached = False
        assert_alike(answer, expected)


def assert_alike(one: Message, other: Message) -> None:
    """Compare messages, apart from the rounding of numbers, which depends on threads."""
    fields, others = ({field.name: value for field, value in m.ListFields()} for m in (one, other))
    assert fields.keys() == others.keys()
    for name, value in fields.items():
        of_one, of_other = ([*v] if one.DESCRIPTOR.fields_by_name[name].is_repeated else [v]
                            for v in (value, others[name]))  # fmt: skip
        for ours, theirs in zip(of_one, of_other, strict=True):
            if isinstance(ours, pb.Tensor):
                assert (ours.name, ours.shape) == (theirs.name, theirs.shape)
                a, b = (np.frombuffer(t.data, t.dtype).astype(float) for t in (ours, theirs))
                far = ~np.isclose(a, b, rtol=1e-2, atol=1e-3 * max(1, abs(b).max()))
                if far.mean() < 1e-3 and of_levels(a) and of_levels(b):
                    # The cell of a region whose logit lies between two levels may get either.
                    far[far] = abs(level(a[far]) - level(b[far])) > 1.01
                assert not far.any(), (a[far], b[far])
            elif isinstance(ours, Struct):  # has no order
                assert ours == theirs
            elif isinstance(ours, Message):
                assert_alike(ours, theirs)
            elif isinstance(ours, bytes) and ours.startswith(b"\x89PNG"):
                levels = (cv2.imdecode(np.frombuffer(png, np.uint8), -1) for png in (ours, theirs))
                np.testing.assert_allclose(*levels, atol=1)
            else:
                assert ours == (pytest.approx(theirs, rel=1e-4) if type(ours) is float else theirs)


def level(logits: np.ndarray) -> np.ndarray:
    """Return which level of ``samclip_core.regions`` each logit has."""
    return 127 * np.sign(logits) * np.sqrt(abs(logits) / LARGEST_LOGIT)


def of_levels(logits: np.ndarray) -> bool:
    return bool((abs(level(logits) - level(logits).round()) < 0.05).all())


def test_every_rpc_with_one_answer_is_compared(local: Local) -> None:
    compared = {rpc_of(request) for request in REQUESTS}
    assert compared == local.services.keys() - {"ListModels", "GetDecoder"}


async def test_it_refuses_what_the_services_refuse(local: Local) -> None:
    outside = pb.Prompt(points=[pb.Point(x=99, y=4)])
    with pytest.raises(InvalidPrompt, match=r"prompt 0: point \(99, 4\) lies outside the image"):
        await local.answer(pb.SegmentRequest(image=IMAGE, prompts=[outside]))
    with pytest.raises(DeadlineExceeded, match=r"no answer within|too short"):
        await local.answer(pb.EmbedTextRequest(texts=["a dog"]), most_s=1e-6)
    with pytest.raises(KeyUnknown, match="send the image"):
        await local.answer(pb.ExplainRequest(image=pb.Image(key="0" * 64), label="a dog"))


async def test_it_keeps_no_concepts(local: Local) -> None:
    with pytest.raises(InvalidRequest, match="concepts are kept by a service"):
        await local.answer(pb.ClassifyRequest(images=[IMAGE], labels=["a dog", "concept:my mug"]))


async def test_afterwards_its_threads_have_ended_and_its_embeddings_are_free(tiny_checkpoint):
    before = {*threading.enumerate()}
    opened = Local(str(tiny_checkpoint), "tests.own_heads:Parts")
    for request in {type(request): request for request in REQUESTS}.values():
        await opened.answer(request)
    (embeddings,) = (
        weakref.ref(service.embedder.cache.memory)
        for service in opened._open
        if isinstance(service, Backbone)
    )
    services = [*opened._open]  # else their threads would end because nobody holds them
    await opened.close()
    for thread in {*threading.enumerate()} - before:
        if not thread.name.startswith("asyncio"):  # the loop's
            thread.join(60)
            assert not thread.is_alive(), thread.name
    services.clear()
    gc.collect()
    assert embeddings() is None
