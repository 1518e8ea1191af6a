"""Bad input to the real service gets the documented status, breaks nothing, and fails alone.

The unit tests of the heads and of ``services.request`` have the other cases.
"""

from collections.abc import Iterator

import grpc
import httpx
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from samclip.v1 import samclip_pb2 as pb
from samclip.v1 import samclip_pb2_grpc as rpc

from tests.e2e.conftest import Service
from tests.in_process import png

pytestmark = pytest.mark.e2e

POINT = pb.Prompt(points=[pb.Point(x=20, y=15)])


def segment(*prompts: pb.Prompt, image: bytes) -> pb.SegmentRequest:
    return pb.SegmentRequest(image=pb.Image(encoded=image), prompts=prompts)


def classify(*images: bytes) -> pb.ClassifyRequest:
    encoded = [pb.Image(encoded=image) for image in images]
    return pb.ClassifyRequest(images=encoded, labels=["cat"])


@pytest.fixture(scope="module", autouse=True)
def no_replica_dies(service: Service) -> Iterator[None]:
    before = service.replicas()
    assert len(before) == 6
    yield
    assert service.replicas() == before


def refused(channel: grpc.Channel, request: Message) -> tuple[str, str]:
    stub = {
        pb.SegmentRequest: rpc.SegmentationServiceStub(channel).Segment,
        pb.ClassifyRequest: rpc.ClassificationServiceStub(channel).Classify,
    }[type(request)]
    with pytest.raises(grpc.RpcError) as caught:
        stub(request, timeout=300)
    return caught.value.code().name, caught.value.details()


GIF = segment(POINT, image=b"GIF89a" + bytes(40))
UNKNOWN = pb.SegmentRequest(image=pb.Image(key="0" * 64), prompts=[POINT])
BROKEN = classify(png(), b"broken", png())


@pytest.mark.parametrize(
    ("request_", "code", "status", "message"),
    [
        (GIF, "INVALID_ARGUMENT", 415, "GIF files are not supported"),
        (UNKNOWN, "FAILED_PRECONDITION", 409, "send the image"),
        (BROKEN, "INVALID_ARGUMENT", 400, "image 1: the 6 bytes are not an image"),
    ],
)
def test_a_bad_request_is_refused_alike_over_grpc_and_http(
    channel: grpc.Channel,
    http: httpx.Client,
    request_: Message,
    code: str,
    status: int,
    message: str,
) -> None:
    found, details = refused(channel, request_)
    assert found == code
    assert message in details
    body = json_format.MessageToDict(request_, preserving_proto_field_name=True)
    reply = http.post("/classify" if request_ is BROKEN else "/segment", json=body)
    problem = reply.json()
    assert reply.status_code == problem["status"] == status
    assert reply.headers["content-type"] == "application/problem+json"
    assert message in problem["detail"]
    assert problem["request_id"] == reply.headers["x-request-id"]


def test_a_body_of_100_mb_over_grpc(channel: grpc.Channel) -> None:
    code, details = refused(channel, segment(POINT, image=bytes(100_000_000)))
    assert code == "INVALID_ARGUMENT"
    assert details.startswith("the image file has 100,000,000 bytes, at most 33,554,432")


def test_good_and_bad_images_in_one_rush(channel: grpc.Channel, number: Iterator[int]) -> None:
    stub = rpc.ClassificationServiceStub(channel)
    good = [png(40 + i, 40, 30, noise=next(number)) for i in range(8)]
    bad = [image[: 150 + i] for i, image in enumerate(good)]
    calls = [
        stub.Classify.future(classify(image), timeout=300)
        for pair in zip(good, bad, strict=True)
        for image in pair
    ]
    for call in calls[::2]:
        assert call.result().results[0].scores[0].score == pytest.approx(1)
    assert {call.code() for call in calls[1::2]} == {grpc.StatusCode.INVALID_ARGUMENT}


def test_a_deadline_that_has_passed(channel: grpc.Channel, number: Iterator[int]) -> None:
    stub = rpc.SegmentationServiceStub(channel)
    request = segment(*[POINT] * 64, image=png(9, 400, 300, noise=next(number)))
    with pytest.raises(grpc.RpcError) as caught:
        stub.Segment(request, timeout=0.02)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(stub.Segment(request, timeout=300).results) == 64
