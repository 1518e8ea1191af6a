"""Heads of one's own as the gateway sees them: their list, and calls that name none in a header."""

import asyncio
from collections.abc import Mapping, Sequence

from samclip.v1 import samclip_pb2 as pb
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Send

from samclip_core.errors import NotFound, SamClipError
from services.gateway.adapters.adapter import Applications, answering, over_grpc
from services.request import http
from services.request.context import RequestContext
from services.request.fan_out import each
from services.request.routes import CUSTOM, HEAD
from services.request.to_json import to_json

SERVICE = CUSTOM.rpartition(".")[2]
LISTED_S = 3.0
"""How long the list waits for each head, which may be loading or hang: the others are listed."""


async def listed(
    applications: Applications, context: RequestContext, only: str = ""
) -> pb.ListHeadsResponse:
    """Return all heads, or one. One that does not answer says why. Raises NotFound."""
    names = [only] if only else list(applications.settings.own_heads)
    _check(applications, names)

    async def one(name: str) -> pb.ListedHead:
        request = pb.ListHeadsRequest(head=name)
        try:
            async with asyncio.timeout(LISTED_S):
                reply = await applications.call("ListHeads", request, context, HEAD + name)
            found: pb.ListedHead = reply.heads[0]
            return found
        except TimeoutError:
            return pb.ListedHead(name=name, reason=f"no answer within {LISTED_S:.0f} s")
        except (SamClipError, RuntimeError) as error:
            return pb.ListedHead(name=name, reason=str(error))

    return pb.ListHeadsResponse(heads=await each(one, names))


async def described(
    applications: Applications, headers: Mapping[str, str]
) -> Sequence[pb.ListedHead]:
    """Return the heads for the API document: none without a key that may ask them."""
    try:
        context = RequestContext.read(headers, applications.settings)
        context.caller.check("read")
        with applications.places.reserve(), context.reply.reserved:
            return (await listed(applications, context)).heads
    except SamClipError:
        return ()


def _check(applications: Applications, names: list[str]) -> None:
    known = applications.settings.own_heads
    for name in names:
        if name not in known:
            served = f"only {', '.join(known)}" if known else "and there are no others"
            raise NotFound(f"no head {name[:80]!r} is served here, {served}")


class CustomHeads:
    """The rpcs of CustomHeadService, for calls that the front door cannot send to their head."""

    applications: Applications

    @over_grpc(SERVICE)
    async def Ask(self, request: pb.AskRequest, context: RequestContext) -> pb.AskResponse:
        _check(self.applications, [request.head])
        application = HEAD + request.head
        reply: pb.AskResponse = await self.applications.call("Ask", request, context, application)
        return reply

    @over_grpc(SERVICE)
    async def ListHeads(
        self, request: pb.ListHeadsRequest, context: RequestContext
    ) -> pb.ListHeadsResponse:
        return await listed(self.applications, context, request.head)


def routes(applications: Applications) -> list[Route]:
    """Return ``GET /heads``, which answers as ListHeads does, and what refuses unknown heads."""

    async def answer(request: Request, headers: Mapping[str, str], send: Send) -> None:
        async with answering(applications, "gateway", "ListHeads", headers) as (context, _):
            reply = await listed(applications, context, request.query_params.get("head", ""))
            response = JSONResponse(to_json(reply))
            await http.sent(response, context.reply.reserved, request, send)

    async def refuse(request: Request, headers: Mapping[str, str], send: Send) -> None:
        _check(applications, [request.path_params["name"]])
        raise NotFound("this head does not answer here: send the request through the front door")

    return [
        Route("/heads", http.Endpoint(answer, http.problem), methods=["GET"]),
        Route("/heads/{name}", http.Endpoint(refuse, http.problem), methods=["POST"]),
    ]
