import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack

import pytest
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import DeadlineExceeded, InvalidRequest, Overloaded
from services.request import streams


async def clicks(count: int, gate: asyncio.Event | None = None) -> AsyncIterator[pb.Point]:
    for x in range(count):
        yield pb.Point(x=x)
    if gate is not None:
        await gate.wait()


async def free() -> None:
    """Count nothing."""


async def received(messages: AsyncIterator[pb.Point]) -> list[float]:
    return [point.x async for point in streams.within_limits(messages, free)]


async def test_messages_pass_in_order(monkeypatch):
    monkeypatch.setattr(streams, "MAX_MESSAGES", 3)
    assert await received(clicks(3)) == [0, 1, 2]


async def test_one_message_too_many_ends_the_session(monkeypatch):
    monkeypatch.setattr(streams, "MAX_MESSAGES", 3)
    with pytest.raises(InvalidRequest, match="at most 3 messages"):
        await received(clicks(4))


async def test_a_message_is_counted_before_it_is_read_except_the_first() -> None:
    done: list[str] = []

    async def counted() -> None:
        done.append("counted")

    async for point in streams.within_limits(clicks(3), counted):
        done.append(f"message {point.x:g}")
    assert done == ["message 0", "counted", "message 1", "counted", "message 2"]


async def test_an_idle_session_ends(monkeypatch):
    monkeypatch.setattr(streams, "IDLE_S", 0.05)
    with pytest.raises(DeadlineExceeded, match=r"no message for 0\.05 seconds"):
        await received(clicks(2, gate=asyncio.Event()))


def test_a_replica_holds_a_limited_number_of_sessions(monkeypatch):
    monkeypatch.setattr(streams, "MAX_SESSIONS", 2)
    replica = streams.Sessions()
    with ExitStack() as stack:
        stack.enter_context(replica.opened())
        stack.enter_context(replica.opened())
        with pytest.raises(Overloaded, match="2 sessions"):
            stack.enter_context(replica.opened())
    with replica.opened():
        pass
