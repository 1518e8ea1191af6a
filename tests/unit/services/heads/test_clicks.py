"""Sessions of clicks over gRPC."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from samclip.mask_codecs import decode_rle
from samclip.v1 import samclip_pb2 as pb

from tests.close import assert_close
from tests.in_process import Caller, png

IMAGE = pb.Image(encoded=png())
POINT = pb.Point(x=20, y=15)
OUTSIDE = pb.Point(x=3, y=4, negative=True)


class Session:
    def __init__(self, caller: Caller):
        self._call = caller.stream("SegmentStream", None)

    async def send(self, **fields: Any) -> pb.SegmentStreamResponse:
        await self._call.write(pb.SegmentStreamRequest(**fields))
        return await self._call.read()

    async def refused(self, **fields: Any) -> tuple[str, str]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.send(**fields)
        return caught.value.code().name, caught.value.details() or ""


@pytest.fixture
async def session(caller: Caller) -> AsyncIterator[Session]:
    opened = Session(caller)
    yield opened
    opened._call.cancel()


def read(mask: pb.Mask) -> np.ndarray:
    return decode_rle(mask.rle.counts, mask.rle.height, mask.rle.width)


async def test_masks_are_the_librarys_own(session, tiny_model):
    named = await session.send(image=IMAGE)
    assert (named.image.width, named.image.height, len(named.masks)) == (40, 30, 0)
    own = tiny_model.clicks(png())
    for x, y, negative in ((20, 15, False), (3, 4, True), (30, 20, False), (5, 25, True)):
        reply = await session.send(points=[pb.Point(x=x, y=y, negative=negative)])
        expected = own.click(x, y, negative)
        assert (read(reply.masks[0]) == expected.masks_MHW[0]).mean() > 0.98
        assert reply.masks[0].predicted_iou == pytest.approx(expected.predicted_iou_M[0], abs=0.01)
    reply = await session.send(box=pb.Box(x_min=5, y_min=5, x_max=30, y_max=25))
    assert (read(reply.masks[0]) == own.draw((5, 5, 30, 25)).masks_MHW[0]).mean() > 0.98


async def test_the_features_are_fetched_once(session, monkeypatch):
    await session.send(image=IMAGE, points=[POINT])
    monkeypatch.setattr("services.heads.backbone_client.BackboneClient.features", None)
    assert len((await session.send(points=[OUTSIDE], multimask=True)).masks) == 3
    assert len((await session.send(restart=True)).masks) == 0


async def test_restart_and_another_image_forget_the_clicks(session):
    first = await session.send(image=IMAGE, points=[POINT])
    await session.send(points=[OUTSIDE])
    assert_close((await session.send(restart=True, points=[POINT])).masks, first.masks)
    other = await session.send(image=pb.Image(encoded=png(red=7)), points=[POINT])
    assert other.image.key != first.image.key
    assert_close((await session.send(image=IMAGE, points=[POINT])).masks, first.masks)


async def test_an_error_names_the_message(caller):
    for fields, code, message in (
        ({"points": [pb.Point(x=99, y=4)]}, "INVALID_ARGUMENT", "message 2: point (99, 4)"),
        ({"box": pb.Box(x_max=1)}, "INVALID_ARGUMENT", "message 2: box"),
        ({"points": [POINT] * 300}, "INVALID_ARGUMENT", "message 2: 300 points on one object, at"),
        ({"encoding": 77, "points": [POINT]}, "INVALID_ARGUMENT", "message 2: mask encoding 77"),
        ({"image": pb.Image(key="0" * 64)}, "FAILED_PRECONDITION", "message 2: "),
    ):
        session = Session(caller)
        await session.send(image=IMAGE)
        found, text = await session.refused(**fields)
        assert (found, text[: len(message)]) == (code, message)
    code, message = await Session(caller).refused(points=[POINT])
    assert (code, message[:20]) == ("INVALID_ARGUMENT", "message 1: no image:")
