"""Sessions of the real service: streams through the front door, in both directions."""

import os
import queue
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import grpc
import pytest
import samclip
from samclip.v1 import samclip_pb2 as pb
from samclip.v1 import samclip_pb2_grpc as rpc

from services.front_door import keys
from services.request.calls import ERROR_KIND
from tests.checkout import ROOT, sources
from tests.e2e import conftest
from tests.e2e.conftest import Service

pytestmark = pytest.mark.e2e

CAT = pb.Point(x=230, y=120)
KEY = "the key of ann, who has one place"
PACED = "the key of bob, who also has a rate"
REVOKED = "the key of eve, who will not keep it"
KEYS = [
    keys.Key(keys.digest(KEY), "ann", ("read",), "ann", inflight=1),
    keys.Key(keys.digest(PACED), "bob", ("read",), "bob", rate=2, inflight=1),
    keys.Key(keys.digest(REVOKED), "eve", ("read",), "eve"),
]
HOLD = """
import sys, threading, grpc
from samclip.v1 import samclip_pb2 as pb, samclip_pb2_grpc as rpc
address, key, photo = sys.argv[1:]
def messages():
    yield pb.SegmentStreamRequest(image=pb.Image(encoded=open(photo, "rb").read()))
    threading.Event().wait()
stub = rpc.SegmentationServiceStub(grpc.insecure_channel(address))
for answer in stub.SegmentStream(messages(), metadata=[("x-api-key", key)]):
    print("open", flush=True)
"""


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


def test_an_error_has_a_status_and_names_the_message(channel: grpc.Channel, photo: bytes) -> None:
    session = Session(channel, ("x-request-id", "id-session"))
    session.send(image=pb.Image(encoded=photo))
    with pytest.raises(grpc.RpcError) as caught:
        session.send(points=[pb.Point(x=9999, y=1)])
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "message 2: point (9999, 1) lies outside the image" in caught.value.details()
    assert dict(caught.value.trailing_metadata())[ERROR_KIND] == "InvalidPrompt"
    with pytest.raises(grpc.RpcError, match="message 1: no image"):
        Session(channel).send(points=[CAT])


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("guarded") / "keys"
    keys.write(file, KEYS)
    return file


@pytest.fixture(scope="module")
def guarded(keys_file: Path, checkpoint_name: str) -> Iterator[Service]:
    running = conftest.start(keys_file.parent, checkpoint_name, API_KEYS_FILE=keys_file)
    yield running
    running.stop()


def test_a_session_holds_a_place_of_its_key_until_its_caller_is_gone(
    guarded: Service, photo: bytes, tmp_path: Path
) -> None:
    image = tmp_path / "photo.jpg"
    image.write_bytes(photo)
    command = [sys.executable, "-c", HOLD, guarded.address, KEY, str(image)]
    environment = {**os.environ, "PYTHONPATH": sources(ROOT)}
    request = pb.SegmentRequest(image=pb.Image(encoded=photo), prompts=[pb.Prompt(points=[CAT])])
    with (
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as holder,
        conftest.channel_to(guarded) as channel,
    ):
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        segment = partial(rpc.SegmentationServiceStub(channel).Segment, request, timeout=300)
        with pytest.raises(grpc.RpcError, match="limited to 1 requests in flight"):
            segment(metadata=[("x-api-key", KEY)])
        holder.kill()
        while True:  # the front door notices the end within moments
            try:
                assert segment(metadata=[("x-api-key", KEY)]).results
                break
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise


def test_messages_wait_for_the_rate_of_their_key(guarded: Service, photo: bytes) -> None:
    """The client opens a session twice, as the service does not know the image: two requests."""
    start = time.monotonic()
    with (
        samclip.Client(guarded.address, api_key=PACED) as client,
        client.image(photo).clicks() as session,
    ):
        first = session.click(CAT.x, CAT.y)  # two messages: it begins an object before
        assert first.area > 0
        for x in (10, 20, 30):
            session.click(x, 10, negative=True)
        assert 2 * (time.monotonic() - start + 2) >= 2 + 2 + 3
        with (
            samclip.Client(guarded.address, api_key=PACED) as other,
            pytest.raises(samclip.Overloaded, match="bob is limited to"),
        ):
            other.image(photo).classify(["a cat"])


def test_the_sessions_of_a_revoked_key_end(guarded: Service, keys_file: Path, photo: bytes) -> None:
    processes = guarded.processes()
    with (
        conftest.channel_to(guarded) as channel,
        samclip.Client(guarded.address, api_key=REVOKED) as client,
        client.image(photo).clicks() as clicks,
    ):
        assert clicks.click(CAT.x, CAT.y).area > 0
        idle = Session(channel, ("x-api-key", REVOKED))
        idle.send(image=pb.Image(encoded=photo))
        keys.write(keys_file, KEYS[:2])
        with pytest.raises(grpc.RpcError, match="'eve' was revoked or changed") as caught:
            next(idle.call)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        for _ in range(2):  # the client does not open sessions without end
            with pytest.raises(samclip.Unauthenticated):
                clicks.click(CAT.x, CAT.y)
    assert guarded.processes() == processes
