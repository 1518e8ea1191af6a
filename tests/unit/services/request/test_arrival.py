"""Bodies that arrive too slowly, or not at all."""

import asyncio

import pytest
from starlette.types import Message as Event
from starlette.types import Receive

from samclip_core.errors import ImageTooLarge, RequestTooSlow
from services.request.arrival import Pace, limited

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


async def test_what_arrives_is_read() -> None:
    assert await read(limited(body(b"ab", b"c"), 3, PATIENT)) == b"abc"


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
    with pytest.raises(ImageTooLarge, match="more than 2 bytes"):
        await read(limited(body(b"ab", b"c"), 2, PATIENT))


async def test_a_caller_who_hangs_up_ends_the_request() -> None:
    async def gone() -> Event:
        return {"type": "http.disconnect"}

    with pytest.raises(asyncio.CancelledError):
        await limited(gone, 10, PATIENT)()
