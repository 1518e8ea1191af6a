"""Bad input to the real service gets the documented status and message, and breaks nothing.

Each case is sent over gRPC and HTTP, beside a good request with a new image.
"""

import itertools
import secrets
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

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
GOOD = png(7, 40, 30)


def header_of(width: int, height: int) -> bytes:
    """Return a PNG file whose header states this size, with one byte of pixels."""
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", size) + _chunk(b"IDAT", b"\0")


def _chunk(kind: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def segment(*prompts: pb.Prompt, image: bytes = GOOD) -> pb.SegmentRequest:
    return pb.SegmentRequest(image=pb.Image(encoded=image), prompts=prompts)


@dataclass(frozen=True)
class Case:
    """A bad request, its expected message and status, and the message as JSON if it differs."""

    request: Message
    message: str
    code: str = "INVALID_ARGUMENT"
    http: int = 400
    as_json: str = ""


CASES = {
    "not an image": Case(segment(POINT, image=b"not an image"), "are not an image"),
    "another format": Case(
        segment(POINT, image=b"GIF89a" + bytes(40)), "GIF files are not supported", http=415
    ),
    "50,000×50,000 header": Case(
        segment(POINT, image=header_of(50_000, 50_000)), "50000×50000 = 2,500,000,000 pixels"
    ),
    "a blank label": Case(
        pb.SegmentTextRequest(image=pb.Image(encoded=GOOD), labels=["cat", " "]),
        "label 1 is empty",
    ),
    "point outside": Case(
        segment(POINT, pb.Prompt(points=[pb.Point(x=41, y=3)])),
        "prompt 1: point (41, 3) lies outside the image of 40×30 pixels",
    ),
    "no number": Case(
        segment(pb.Prompt(points=[pb.Point(x=float("nan"), y=3)])),
        "point (nan, 3) lies outside",
        as_json="prompts[0].points[0].x is 'NaN': expected a number",
    ),
    "a mask_input without end": Case(
        segment(pb.Prompt(mask_input=pb.Tensor(dtype="float32", shape=[2**62] * 1000))),
        "mask_input: tensor has 1000 dimensions",
        as_json="1,000 shape in prompts[0].mask_input, at most 64: send fewer",
    ),
    "unknown key": Case(
        pb.SegmentRequest(image=pb.Image(key="0" * 64), prompts=[POINT]),
        "send the image",
        "FAILED_PRECONDITION",
        409,
    ),
    "one bad image of three": Case(
        pb.ClassifyRequest(
            images=[pb.Image(encoded=image) for image in (GOOD, b"broken", GOOD)], labels=["cat"]
        ),
        "image 1: the 6 bytes are not an image",
    ),
    "unknown collection": Case(
        pb.SearchRequest(collection="nowhere", text="cat"),
        "no collection 'nowhere'",
        "NOT_FOUND",
        404,
    ),
}
ROUTES = {
    pb.SegmentRequest: ("SegmentationService", "Segment", "/segment"),
    pb.ClassifyRequest: ("ClassificationService", "Classify", "/classify"),
    pb.SegmentTextRequest: ("SemanticSegmentationService", "SegmentText", "/semantic"),
    pb.SearchRequest: ("RetrievalService", "Search", "/search"),
}


def refused(channel: grpc.Channel, request: Message) -> tuple[str, str]:
    service, method, _ = ROUTES[type(request)]
    with pytest.raises(grpc.RpcError) as caught:
        getattr(getattr(rpc, f"{service}Stub")(channel), method)(request, timeout=300)
    return caught.value.code().name, caught.value.details()


@pytest.fixture(scope="module", autouse=True)
def no_replica_dies(service: Service) -> Iterator[None]:
    before = service.replicas()
    assert len(before) == 6
    yield
    assert service.replicas() == before


@pytest.fixture(scope="module")
def number() -> Iterator[int]:
    """Return seeds of images that no cache holds."""
    return itertools.count(secrets.randbits(32))


@pytest.fixture
def good_neighbour(channel: grpc.Channel, number: Iterator[int]) -> Iterator[None]:
    """Send a good request with a new image while the test sends a bad one."""
    request = segment(POINT, image=png(9, 40, 30, noise=next(number)))
    call = rpc.SegmentationServiceStub(channel).Segment.future(request, timeout=300)
    yield
    answer = call.result()
    assert not answer.image.cached
    assert len(answer.results[0].masks) == 1


@pytest.mark.usefixtures("good_neighbour")
@pytest.mark.parametrize("name", CASES)
def test_over_grpc(channel: grpc.Channel, name: str) -> None:
    case = CASES[name]
    code, details = refused(channel, case.request)
    assert code == case.code
    assert case.message in details


@pytest.mark.usefixtures("good_neighbour")
@pytest.mark.parametrize("name", CASES)
def test_over_http(http: httpx.Client, name: str) -> None:
    case = CASES[name]
    body = json_format.MessageToDict(case.request, preserving_proto_field_name=True)
    reply = http.post(ROUTES[type(case.request)][2], json=body)
    problem = reply.json()
    assert reply.status_code == problem["status"] == case.http
    assert reply.headers["content-type"] == "application/problem+json"
    assert (case.as_json or case.message) in problem["detail"]
    assert problem["request_id"] == reply.headers["x-request-id"]


@pytest.mark.usefixtures("good_neighbour")
def test_a_body_of_100_mb_over_grpc(channel: grpc.Channel) -> None:
    code, details = refused(channel, segment(POINT, image=bytes(100_000_000)))
    assert code == "INVALID_ARGUMENT"
    assert details.startswith("the image file has 100,000,000 bytes, at most 33,554,432")


def test_good_and_bad_images_in_one_rush(channel: grpc.Channel, number: Iterator[int]) -> None:
    stub = rpc.ClassificationServiceStub(channel)
    good = [png(40 + i, 40, 30, noise=next(number)) for i in range(8)]
    bad = [image[: 150 + i] for i, image in enumerate(good)]
    calls = [
        stub.Classify.future(
            pb.ClassifyRequest(images=[pb.Image(encoded=image)], labels=["cat"]), timeout=300
        )
        for pair in zip(good, bad, strict=True)
        for image in pair
    ]
    for call in calls[::2]:
        assert call.result().results[0].scores[0].score == pytest.approx(1)
    assert {call.code() for call in calls[1::2]} == {grpc.StatusCode.INVALID_ARGUMENT}


def test_a_deadline_that_has_passed(channel: grpc.Channel, number: Iterator[int]) -> None:
    stub = rpc.SegmentationServiceStub(channel)
    request = segment(*[POINT] * 256, image=png(9, 400, 300, noise=next(number)))
    with pytest.raises(grpc.RpcError) as caught:
        stub.Segment(request, timeout=0.02)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(stub.Segment(request, timeout=300).results) == 256
