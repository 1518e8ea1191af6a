"""The key of an open stream, about which a service asks a real front door."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from itertools import count
from typing import Any

import grpc
import pytest
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import Overloaded, SamClipError, Unauthenticated, Unavailable
from services.front_door import haproxy, keys, reload
from services.request import calls, context, rpc, streams
from services.request.context import RequestContext
from services.settings import Settings
from tests.door import EMBED, FIRST, SECOND, SECRET, Door

EVER = 30
"""Seconds in which something that was promised within seconds has happened on any machine."""


class Clicks(rpc.Service):
    """Answers each message of a session with its number; a single request is endless work."""

    name = "SegmentationService"
    application = "segmentation"

    def __init__(self) -> None:
        super().__init__(Settings())
        self.stopped = False

    @rpc.rpc
    async def SegmentStream(
        self, request: AsyncIterator[pb.SegmentStreamRequest], context: RequestContext
    ) -> AsyncGenerator[pb.SegmentStreamResponse, None]:
        try:
            async for message in request:
                yield pb.SegmentStreamResponse(image=pb.ImageInfo(width=len(message.points)))
        finally:
            self.stopped = True

    @rpc.rpc
    async def StreamEverything(
        self, request: pb.SegmentEverythingRequest, context: RequestContext
    ) -> AsyncGenerator[pb.EverythingUpdate, None]:
        try:
            for number in count():
                await asyncio.sleep(0.01)
                yield pb.EverythingUpdate(progress=number)
        finally:
            self.stopped = True


class Session:
    """A session of a key, opened with the headers that the front door has passed on."""

    def __init__(self, door: Door, key: str):
        door.call(EMBED, ("x-api-key", key), (context.ASK, "127.0.0.1:1 made-up"))
        self.headers = door.serve.requests[-1][1]
        self.service = Clicks()
        self._messages: asyncio.Queue[pb.SegmentStreamRequest] = asyncio.Queue()
        self.answers = self._answers("SegmentStream", self._sent(), streams.LONGEST_S)

    def updates(self) -> rpc.Answers:
        """Begin the endless work of a request with the same headers."""
        return self._answers("StreamEverything", pb.SegmentEverythingRequest(), None)

    def _answers(self, method: str, request: Any, most_s: float | None) -> rpc.Answers:
        arrived = self.service.arrive(method, self.headers, most_s)
        return self.service.answers(method, request, arrived)

    async def _sent(self) -> AsyncIterator[pb.SegmentStreamRequest]:
        while True:
            yield await self._messages.get()

    def waiting(self) -> asyncio.Task[pb.SegmentStreamResponse]:
        """Wait for the answer to a message that is not sent yet."""
        return asyncio.ensure_future(anext(self.answers))

    async def click(self, points: int = 1) -> int:
        self._messages.put_nowait(pb.SegmentStreamRequest(points=[pb.Point()] * points))
        return int((await anext(self.answers)).image.width)

    async def error(self) -> SamClipError:
        """Return the error with which a session ends that gets no message."""
        with pytest.raises(SamClipError) as raised:
            await asyncio.wait_for(self.waiting(), EVER)
        return raised.value


@pytest.fixture
def door(guarded: Door, monkeypatch: pytest.MonkeyPatch) -> Door:
    monkeypatch.setenv(calls.SECRET_VARIABLE, SECRET)
    monkeypatch.setattr(streams, "CHECK_S", 0.05)
    return guarded


Open = Callable[..., Session]


@pytest.fixture
async def session_of(door: Door) -> AsyncIterator[Open]:
    """Open a session of a key, the first one by default."""
    made: list[Session] = []

    def opened(key: str = "first-key") -> Session:
        made.append(Session(door, key))
        return made[-1]

    yield opened
    for session in made:
        await session.answers.aclose()


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
async def test_the_sessions_of_a_revoked_key_end_and_others_go_on(
    door: Door, session_of: Open, now: tuple[keys.Key, ...]
) -> None:
    idle, other = session_of(), session_of("second, key")
    assert [await idle.click(2), await other.click(1)] == [2, 1]
    change(door, SECOND, *now)
    error = await idle.error()
    assert isinstance(error, Unauthenticated)
    assert "'ann' was revoked or changed" in str(error)
    assert idle.service.stopped
    assert await other.click(3) == 3


async def test_a_message_after_its_key_was_revoked_is_refused(
    door: Door, session_of: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "CHECK_S", 600)
    session = session_of()
    await session.click()
    change(door, SECOND)
    with pytest.raises(Unauthenticated, match="'ann' was revoked"):
        await session.click()


async def test_other_limits_of_the_same_key_end_no_session(door: Door, session_of: Open) -> None:
    session = session_of()
    await session.click()
    change(door, replace(FIRST, rate=1000, inflight=1000))
    assert await session.click(4) == 4


async def test_long_work_of_a_revoked_key_stops(door: Door, session_of: Open) -> None:
    session = session_of()
    updates = session.updates()
    assert (await anext(updates)).progress == 0
    change(door, SECOND)

    async def read() -> None:
        async for _ in updates:
            pass

    with pytest.raises(Unauthenticated, match="revoked"):
        await asyncio.wait_for(read(), EVER)
    assert session.service.stopped


async def test_messages_count_as_requests_of_their_key(door: Door, session_of: Open) -> None:
    """The first message counts with the request that opens the session."""
    change(door, replace(FIRST, rate=4), SECOND)
    start, number = time.monotonic(), 1
    sessions = [session_of(), session_of()]
    for _ in range(6):
        for session in sessions:
            assert await session.click() == 1  # one that is too early waits
            number += 1
    assert number <= 4 * (time.monotonic() - start + 2)
    reply = None
    while reply is None or reply.status_code != 429:  # messages leave fewer requests
        await session.click()
        reply = door.http.get("/classify", headers={"x-api-key": "first-key"})
    assert door.http.get("/classify", headers={"x-api-key": "second, key"}).is_success


async def test_a_message_that_waits_too_long_is_refused(
    door: Door, session_of: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "WAIT_S", 0)
    change(door, replace(FIRST, rate=1))
    session = session_of()

    async def click_without_end() -> None:
        while True:
            await session.click()

    with pytest.raises(Overloaded, match="ann is limited to 1 requests per second"):
        await click_without_end()


async def test_questions_take_no_place_in_flight(door: Door, session_of: Open) -> None:
    """Otherwise a message of a session would take the place of another request."""
    change(door, replace(FIRST, inflight=1))
    session = session_of()
    door.serve.gate.clear()
    held = asyncio.create_task(
        asyncio.to_thread(door.http.get, "/classify", headers={"x-api-key": "first-key"})
    )
    while [path for path, _ in door.serve.requests][-1] == EMBED:
        await asyncio.sleep(0.01)
    for _ in range(9):
        await session.click()
    door.serve.gate.set()
    assert (await held).is_success


async def test_without_a_front_door_to_ask_a_message_is_refused(
    door: Door, session_of: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "ANSWER_S", 0.2)
    session = session_of()
    await session.click()
    haproxy.stop(door.process)
    waiting = session.waiting()
    await asyncio.sleep(10 * streams.CHECK_S)
    assert not waiting.done()  # it may be stopping, and calls in flight may finish
    session._messages.put_nowait(pb.SegmentStreamRequest())
    with pytest.raises(Unavailable, match="does not confirm the API key"):
        await waiting


async def test_a_stream_does_not_outlive_a_front_door_that_does_not_answer(
    door: Door, session_of: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a key could be revoked while the front door has no place for the question."""
    monkeypatch.setattr(streams, "ANSWER_S", 0.2)
    monkeypatch.setattr(streams, "SILENT_S", 0.5)
    session = session_of()
    await session.click()
    haproxy.stop(door.process)
    with pytest.raises(Unavailable, match="does not confirm the API key"):
        await session.waiting()


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
