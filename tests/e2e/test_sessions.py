"""Sessions of the real service: streams through the front door, in both directions."""

import queue

import grpc
import pytest
from samclip.v1 import samclip_pb2 as pb
from samclip.v1 import samclip_pb2_grpc as rpc

pytestmark = pytest.mark.e2e

CAT = pb.Point(x=230, y=120)


class Session:
    """A session that sends one message at a time."""

    def __init__(self, channel: grpc.Channel, *metadata: tuple[str, str]):
        self._messages: queue.Queue[pb.SegmentStreamRequest | None] = queue.Queue()
        stub = rpc.SegmentationServiceStub(channel)
        messages = iter(self._messages.get, None)
        self.call = stub.SegmentStream(messages, timeout=300, metadata=metadata)

    def send(self, **fields: object) -> pb.SegmentStreamResponse:
        """Send one message and return its answer, before the next one is sent."""
        self._messages.put(pb.SegmentStreamRequest(**fields))
        return next(self.call)

    def end(self) -> list[pb.SegmentStreamResponse]:
        self._messages.put(None)
        return list(self.call)


def test_each_message_is_answered_before_the_next_one(channel: grpc.Channel, photo: bytes) -> None:
    session = Session(channel)
    first = session.send(image=pb.Image(encoded=photo))
    assert (first.image.width, first.image.height, len(first.masks)) == (451, 300, 0)
    (mask,) = session.send(points=[CAT]).masks
    assert mask.area > 0
    three = session.send(points=[pb.Point(x=10, y=10, negative=True)], multimask=True)
    assert len(three.masks) == 3
    assert three.model == first.model
    again = session.send(restart=True, points=[CAT])
    assert again.masks == [mask]
    assert session.end() == []
    assert session.call.code() is grpc.StatusCode.OK
    with pytest.raises(grpc.RpcError, match="message 1: no image") as refused:
        Session(channel).send(points=[CAT])
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
