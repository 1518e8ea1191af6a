"""The list of heads of one's own has those that answer, whatever the others do."""

import asyncio
from typing import Any

import pytest
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import NotFound, Unavailable
from services.gateway import heads
from services.gateway.adapters.adapter import Applications
from services.request.context import RequestContext
from services.settings import Settings


async def test_a_head_that_fails_or_hangs_keeps_no_other_from_the_list(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heads, "LISTED_S", 0.05)

    async def call(rpc: str, request: Any, context: RequestContext, application: str) -> Any:
        match request.head:
            case "hangs":
                await asyncio.Event().wait()
            case "gone":
                raise Unavailable("no replica")
            case "broken":
                raise RuntimeError("INTERNAL: internal error")
        return pb.ListHeadsResponse(heads=[pb.ListedHead(name=request.head)])

    applications = Applications(Settings(heads="a:Hangs,a:Gone,a:Broken,a:Sound"))
    monkeypatch.setattr(applications, "call", call)
    reply = await heads.listed(applications, RequestContext())
    assert {head.name: head.reason for head in reply.heads} == {
        "hangs": "no answer within 0 s",
        "gone": "no replica",
        "broken": "INTERNAL: internal error",
        "sound": "",
    }
    with pytest.raises(NotFound, match="only hangs, gone, broken, sound"):
        await heads.listed(applications, RequestContext(), "other")
