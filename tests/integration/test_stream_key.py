"""The key of an open stream, about which a service asks a real front door."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import grpc
import pytest
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import SamClipError, Unauthenticated, Unavailable
from services.front_door import keys, reload
from services.request import calls, context, rpc, streams
from services.request.context import RequestContext
from services.settings import Settings
from tests.door import EMBED, FIRST, SECOND, SECRET, Door, answering, opened

EVER = 30
"""Seconds in which something that was promised within seconds has happened on any machine."""


class Endless(rpc.Service):
    """Answers with a stream that never ends by itself."""

    name = "SegmentationService"
    application = "segmentation"

    def __init__(self) -> None:
        super().__init__(Settings(request_timeout_s=600))
        self.pause_s = 0.01  # before each update
        self.stopped = False

    @rpc.rpc
    async def StreamEverything(
        self, request: pb.SegmentEverythingRequest, context: RequestContext
    ) -> AsyncGenerator[pb.EverythingUpdate, None]:
        try:
            for number in count():
                await asyncio.sleep(self.pause_s)
                yield pb.EverythingUpdate(progress=number)
        finally:
            self.stopped = True


class Stream:
    """A stream of a key, begun with the headers that the front door has passed on."""

    def __init__(self, door: Door, key: str):
        door.call(EMBED, ("x-api-key", key), (context.ASK, "127.0.0.1:1 made-up"))
        self.service = Endless()
        headers = {**door.serve.requests[-1][1], context.TIMEOUT: "600S"}
        arrived = self.service.arrive("StreamEverything", headers)
        request = pb.SegmentEverythingRequest()
        self.updates = self.service.answers("StreamEverything", request, arrived)

    async def error(self) -> SamClipError:
        """Read on until the stream ends, and return its error."""

        async def read() -> None:
            async for _ in self.updates:
                pass

        with pytest.raises(SamClipError) as raised:
            await asyncio.wait_for(read(), 2 * EVER)
        assert self.service.stopped
        return raised.value


@pytest.fixture
def door(guarded: Door, monkeypatch: pytest.MonkeyPatch) -> Door:
    monkeypatch.setenv(calls.SECRET_VARIABLE, SECRET)
    monkeypatch.setattr(streams, "CHECK_S", 0.05)
    return guarded


Open = Callable[..., Stream]


@pytest.fixture
async def stream_of(door: Door) -> AsyncIterator[Open]:
    """Begin a stream of a key, the first one by default."""
    made: list[Stream] = []

    def begun(key: str = "first-key") -> Stream:
        made.append(Stream(door, key))
        return made[-1]

    yield begun
    for stream in made:
        await stream.updates.aclose()


def change(door: Door, *now: keys.Key) -> None:
    assert door.settings.api_keys_file
    keys.write(door.settings.api_keys_file, now)
    reload.load_keys(door.admin, door.settings.api_keys_file)


@pytest.mark.parametrize(
    "now",
    [
        (),
        (replace(FIRST, sha256=keys.digest("another key")),),
        (replace(FIRST, name="anna"),),
        (replace(FIRST, tenant="other"),),
        (replace(FIRST, scopes=("read",)),),
    ],
    ids=["removed", "made again", "renamed", "of another tenant", "with other scopes"],
)
async def test_the_streams_of_a_revoked_key_end_and_others_go_on(
    door: Door, stream_of: Open, now: tuple[keys.Key, ...]
) -> None:
    revoked, other = stream_of(), stream_of("second, key")
    assert [(await anext(stream.updates)).progress for stream in (revoked, other)] == [0, 0]
    change(door, SECOND, *now)
    error = await revoked.error()
    assert isinstance(error, Unauthenticated)
    assert "'ann' was revoked or changed" in str(error)
    assert (await anext(other.updates)).progress == 1


async def test_other_limits_of_the_same_key_end_no_stream(door: Door, stream_of: Open) -> None:
    updates = stream_of().updates
    await anext(updates)
    change(door, replace(FIRST, rate=1000, inflight=1000))
    for _ in range(20):  # several questions about the key
        await anext(updates)


async def test_questions_count_as_no_request(door: Door, stream_of: Open) -> None:
    """Otherwise they would take the place of other requests of the key."""
    own = replace(FIRST, sha256=keys.digest("own-key"), name="cy", rate=2, inflight=1)
    change(door, own)  # no other test has used up its rate
    updates = stream_of("own-key").updates
    door.serve.gate.clear()
    held = asyncio.create_task(
        asyncio.to_thread(door.http.get, "/classify", headers={"x-api-key": "own-key"})
    )
    while [path for path, _ in door.serve.requests][-1] == EMBED:
        await asyncio.sleep(0.01)
    for _ in range(20):
        await anext(updates)
    door.serve.gate.set()
    assert (await held).is_success


@pytest.mark.usefixtures("door")
async def test_no_stream_outlives_a_front_door_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A front door that stops lets calls in flight finish; later a key could have been revoked."""
    monkeypatch.setattr(streams, "ANSWER_S", 0.2)
    keys.write(tmp_path / "keys", [FIRST, SECOND])
    with opened(answering(), api_keys_file=tmp_path / "keys") as own:
        waiting, busy = Stream(own, "first-key"), Stream(own, "second, key")
        for stream in (waiting, busy):
            await anext(stream.updates)
    for _ in range(20):
        await anext(waiting.updates)
    monkeypatch.setattr(streams, "SILENT_S", 0.5)
    waiting.service.pause_s = EVER  # the other one has an update before each answer
    for error in await asyncio.gather(waiting.error(), busy.error()):
        assert isinstance(error, Unavailable)
        assert "does not confirm the API key" in str(error)


def test_only_who_shows_the_secret_may_ask(door: Door) -> None:
    public = f"127.0.0.1:{door.settings.grpc_port}"
    inner = f"127.0.0.1:{door.settings.keeper_grpc_port}"
    asked = {
        (address, secret): refusal(address, secret)
        for address in (public, inner)
        for secret in ("", "guess")
    }
    assert {code for (at, _), code in asked.items() if at == inner} == {"PERMISSION_DENIED"}
    assert {code for (at, _), code in asked.items() if at == public} == {"UNAUTHENTICATED"}


def refusal(address: str, secret: str) -> str:
    metadata = ((calls.SECRET_HEADER, secret), ("x-samclip-key-hash", FIRST.sha256))
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as raised:
        list(channel.unary_stream("/samclip.Key/Check")(b"", metadata=metadata, timeout=EVER))
    return str(raised.value.code().name)
