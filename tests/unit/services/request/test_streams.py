from collections.abc import AsyncIterator
from contextlib import nullcontext

import pytest
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import InvalidRequest
from services.request import streams


async def clicks(count: int) -> AsyncIterator[pb.Point]:
    for x in range(count):
        yield pb.Point(x=x)


@pytest.mark.parametrize("sent", [3, 4])
async def test_each_message_but_the_first_is_counted_before_it_is_read(monkeypatch, sent) -> None:
    """One message too many ends the session."""
    monkeypatch.setattr(streams, "MAX_MESSAGES", 3)
    done: list[str] = []

    async def counted() -> None:
        done.append("counted")

    with pytest.raises(InvalidRequest, match="at most 3 messages") if sent > 3 else nullcontext():
        async for point in streams.within_limits(clicks(sent), counted):
            done.append(f"message {point.x:g}")
    assert done == ["message 0", "counted", "message 1", "counted", "message 2"]
