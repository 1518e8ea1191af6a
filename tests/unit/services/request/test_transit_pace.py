"""Bodies that arrive too slowly or not at all, and replies that nobody reads."""

import asyncio
import threading
from collections.abc import Iterator
from time import monotonic

import pytest
from starlette.requests import Request
from starlette.types import Message as Event
from starlette.types import Receive

from samclip_core.errors import DeadlineExceeded, ImageTooLarge, RequestTooSlow
from services.batching.priority import Priority
from services.batching.threads import Threads
from services.request import bodies, transit
from services.request.context import RequestContext, time_limit
from services.request.transit import PIECE, Budget, Pace, Transfer, limited, paced, parsed
from tests.unit.services.batching.device import NOW

PATIENT = Pace(most_s=1e6, head_start_s=1e6)


def body(*pieces: bytes, end: bool = True) -> Receive:
    """Return a receive function that yields these pieces at once and then blocks."""
    left = list(pieces)

    async def receive() -> Event:
        if not left:
            await asyncio.Event().wait()
        piece = left.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(left) or not end}

    return receive


async def read(receive: Receive) -> bytes:
    content, more = b"", True
    while more:
        event = await receive()
        content, more = content + event["body"], event["more_body"]
    return content


@pytest.mark.parametrize(
    ("received", "seconds"), [(0, 10), (16_000, 11), (800_000, 60), (10**9, 60)]
)
def test_a_body_has_a_head_start_a_rate_and_an_end(received: int, seconds: float) -> None:
    assert Pace().allowed_s(received) == seconds


async def test_the_time_of_a_wait_that_failed_counts() -> None:
    transfer = Transfer(Pace(head_start_s=0.05))
    with pytest.raises(RequestTooSlow):
        async with transfer.wait("host"):
            await asyncio.Event().wait()
    assert transfer.waited_s > 0


@pytest.mark.parametrize(
    "pace", [Pace(most_s=0.05, head_start_s=1e6), Pace(head_start_s=0.05)], ids=["total", "rate"]
)
async def test_a_caller_who_stops_in_the_middle_is_not_waited_for(pace: Pace) -> None:
    with pytest.raises(RequestTooSlow, match="the body is too slow: 2 bytes arrived"):
        await read(limited(body(b"ab", end=False), 10, pace))


async def test_a_byte_now_and_then_does_not_prolong_the_wait() -> None:
    async def dribble() -> Event:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"a", "more_body": True}

    with pytest.raises(RequestTooSlow):
        await read(limited(dribble, 10**9, Pace(most_s=0.2)))


async def test_the_work_on_what_has_arrived_is_not_the_callers_time() -> None:
    receive = limited(body(b"a", b"b"), 10, Pace(most_s=0.2))
    await receive()
    await asyncio.sleep(0.4)
    assert (await receive())["body"] == b"b"


async def test_more_than_the_limit_is_not_read() -> None:
    assert await read(limited(body(b"ab", b"c"), 3, PATIENT)) == b"abc"
    with pytest.raises(ImageTooLarge, match="more than 2 bytes"):
        await read(limited(body(b"ab", b"c"), 2, PATIENT))


async def test_a_caller_who_hangs_up_ends_the_request() -> None:
    async def gone() -> Event:
        return {"type": "http.disconnect"}

    with pytest.raises(asyncio.CancelledError):
        await limited(gone, 10, PATIENT)()


async def test_a_body_that_is_given_up_anywhere_holds_nothing() -> None:
    """The caller disconnects, or the request is cancelled, after some turns of the event loop."""
    scope = {"type": "http", "headers": [(b"x-samclip-key", b"ann")]}
    for after in range(40):
        arrivals, chunks = Budget("bodies", 100), iter([b"{", *[b" "] * 20])

        async def receive(chunks: Iterator[bytes] = chunks) -> Event:
            await asyncio.sleep(0)
            if (chunk := next(chunks, None)) is None:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": chunk, "more_body": True}

        whole = bodies.whole(Request(scope, receive), 100, arrivals)
        reading = asyncio.create_task(whole.__aenter__())
        for _ in range(after):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        assert (arrivals.number, arrivals.bytes) == (0, 0)
        with arrivals.reserve("ann") as reserved:
            reserved.hold(50)


async def test_large_bodies_take_turns_and_one_whose_deadline_passes_costs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transit, "PARSERS", Threads("parse", 1))
    started, end, worked = asyncio.Event(), threading.Event(), list[str]()
    loop = asyncio.get_running_loop()

    def long() -> None:
        loop.call_soon_threadsafe(started.set)
        end.wait(60)

    first = asyncio.create_task(parsed(NOW, [b"", b""], long))
    await started.wait()
    hasty = RequestContext(priority=Priority(monotonic() + 0.05))
    with pytest.raises(DeadlineExceeded):
        async with time_limit(hasty):
            await parsed(hasty.priority, [b"", b""], lambda: worked.append("late"))
    await parsed(NOW, [b""], lambda: worked.append("small"))
    end.set()
    await first
    await parsed(NOW, [b"", b""], lambda: worked.append("next"))
    assert worked == ["small", "next"]


def reply(size: int) -> Event:
    return {"type": "http.response.body", "body": bytes(size)}


async def test_a_large_reply_is_sent_in_pieces_and_its_end_comes_after_them() -> None:
    sent: list[Event] = []

    async def send(event: Event) -> None:
        sent.append(event)

    await paced(send, PATIENT, Budget("replies", 0).reserve())(reply(2 * PIECE + 1))
    sizes = [(len(event["body"]), event.get("more_body", False)) for event in sent]
    assert sizes == [(PIECE, True), (PIECE, True), (1, True), (0, False)]
    sent.clear()
    await paced(send, PATIENT, Budget("replies", 0).reserve())(reply(PIECE))
    assert sent == [reply(PIECE)]


async def test_a_caller_who_stops_reading_is_not_waited_for() -> None:
    sent: list[Event] = []

    async def send(event: Event) -> None:
        sent.append(event)
        if len(sent) > 1:
            await asyncio.Event().wait()

    with pytest.raises(RequestTooSlow, match=f"the reader of the reply is too slow: {PIECE:,}"):
        await paced(send, Pace(most_s=0.05), Budget("replies", 0).reserve())(reply(3 * PIECE))
    assert len(sent) == 2
