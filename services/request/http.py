"""HTTP in front of the gRPC methods: body to message, call, message to body.

The ingress class of an application returns ``application(NAME, self)`` from
``__serve_build_asgi_app__``, which Serve calls after the constructor.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from http import HTTPStatus
from itertools import groupby
from operator import attrgetter
from typing import ClassVar, Protocol

from fastapi import FastAPI
from google.protobuf.message import Message
from samclip.v1 import samclip_pb2 as pb
from starlette import routing
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as Event

from samclip_core.errors import RequestTooSlow, SamClipError, Unauthenticated
from services.request import admission, json_bodies, overlay, request_log, status
from services.request.arrival import MAX_BODIES, PACE, Arrivals, Pace, taken
from services.request.context import RequestContext, time_limit
from services.request.limits import form_parts, most_values
from services.request.long_json import LongJSON
from services.request.routes import ROUTES, Route
from services.settings import Settings

REQUEST_ID_HEADER = "x-request-id"
LINES = "application/x-ndjson"
"""The media type of JSON objects, one per line."""
BODY = "http.response.body"
START_OF_LINES = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", LINES.encode())],
}

Handler = Callable[[Request, Mapping[str, str], Send], Awaitable[None]]
"""Answers a request, whose headers have its id, until the caller has taken the reply."""


class Callee(Protocol):
    """The ingress of an application; see ``services.request.rpc.Service``."""

    name: ClassVar[str]
    settings: Settings

    def arrive(self, method: str, metadata: Mapping[str, str]) -> RequestContext: ...

    async def respond(self, method: str, request: Message, context: RequestContext) -> Message: ...

    def respond_in_parts(
        self, method: str, request: Message, context: RequestContext
    ) -> AsyncGenerator[Message, None]: ...


def application(name: str, callee: Callee, arrivals: Arrivals | None = None) -> FastAPI:
    """Build the HTTP side of one application: its POST routes, and GET /healthz for the gateway."""
    app = protected()
    arrivals = arrivals or Arrivals(MAX_BODIES * callee.settings.max_request_bytes)
    for path, routes in groupby(ROUTES[name], attrgetter("path")):
        handler = _Routes(tuple(routes), callee, arrivals)
        endpoint = Endpoint(handler, problem, arrivals.pace)
        app.routes.append(routing.Route(path, endpoint, methods=["POST"]))

    @app.get("/healthz")
    async def health(request: Request) -> Response:
        """Return the application's report: its model, its cache and its dependencies."""
        describe = getattr(callee, "health", None)
        try:
            return JSONResponse(await describe() if describe else {})
        except SamClipError as error:
            return problem(error, request.headers.get(REQUEST_ID_HEADER, ""))

    return app


def protected() -> FastAPI:
    """Build an app that accepts only requests from the front door; errors are problem documents."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    app.add_middleware(OnlyThroughFrontDoor)
    app.add_exception_handler(HTTPException, _refuse)
    return app


class OnlyThroughFrontDoor:
    """ASGI middleware that refuses requests that did not come through the front door."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else {}
        if scope["type"] == "lifespan" or admission.admitted(headers):
            await self.app(scope, receive, send)
            return
        error = Unauthenticated(admission.REFUSAL)
        await problem(error, headers.get(REQUEST_ID_HEADER, ""))(scope, receive, send)


class Endpoint:
    """ASGI application of one route: a request ends with the last byte of its reply.

    ``failed`` makes the reply of an error. An error after the first byte closes the connection.
    """

    def __init__(
        self, handle: Handler, failed: Callable[[Exception, str], Response], pace: Pace = PACE
    ):
        self.handle, self.failed, self.pace = handle, failed, pace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, begun = Request(scope, receive), False
        identity = request.headers.get(REQUEST_ID_HEADER) or uuid.uuid4().hex
        headers = {**request.headers, request_log.REQUEST_ID: identity}
        sent = taken(send, self.pace)

        async def begin(event: Event) -> None:
            nonlocal begun
            begun = True
            await sent(event)

        try:
            await self.handle(request, headers, begin)
        except Exception as error:
            if begun:
                raise asyncio.CancelledError from error
            await self.failed(error, identity)(scope, receive, send)


class _Routes:
    """The handler of one path."""

    def __init__(self, routes: Sequence[Route], callee: Callee, arrivals: Arrivals):
        self.routes, self.callee, self.arrivals = routes, callee, arrivals

    async def __call__(self, request: Request, headers: Mapping[str, str], send: Send) -> None:
        accepted = request.headers.get("accept", "")
        if self.routes[0].stream and LINES in accepted:
            await self._send_lines(request, headers, send)
            return
        # An error raised before the rpc is known is counted under the first candidate.
        with request_log.request(self.callee.name, self.routes[0].rpc, headers) as observed:
            response, context = await self._answer(request, headers, observed)
            observed.until = time.perf_counter()
            async with time_limit(context):
                await response(request.scope, request.receive, send)

    async def _answer(
        self, request: Request, headers: Mapping[str, str], observed: request_log.Observed
    ) -> tuple[Response, RequestContext]:
        """Return the reply, whose messages are not kept while the caller takes it."""
        route, message, single, context = await self._read(request, headers, observed)
        reply = await self.callee.respond(route.rpc, message, context)
        as_png = "image/png" in request.headers.get("accept", "")
        async with time_limit(context):
            rendered = asyncio.to_thread(_render, route, message, reply, single, as_png)
            return await rendered, context

    async def _send_lines(self, request: Request, headers: Mapping[str, str], send: Send) -> None:
        """Send the answers of a streaming rpc as they come, one JSON object per line.

        An error after the first one is the last line.
        """
        begun, rpc = False, self.routes[0].stream
        try:
            with request_log.request(self.callee.name, rpc, headers) as observed:
                _, message, _, context = await self._read(request, headers, observed)
                parts = self.callee.respond_in_parts(rpc, message, context)
                async with aclosing(parts) as answers:
                    async for answer in answers:
                        line = await asyncio.to_thread(_line, answer)
                        async with time_limit(context):
                            if not begun:
                                await send(START_OF_LINES)
                            begun = True
                            await send({"type": BODY, "body": line, "more_body": True})
            await send({"type": BODY, "body": b""})
        except Exception as error:
            if not begun or isinstance(error, RequestTooSlow):
                raise
            failed = problem(error, headers[request_log.REQUEST_ID])
            await send({"type": BODY, "body": bytes(failed.body) + b"\n"})

    async def _read(
        self, request: Request, headers: Mapping[str, str], observed: request_log.Observed
    ) -> tuple[Route, Message, bool, RequestContext]:
        """Read the request: its route, its message, whether that is single, and its context."""
        routes = self.routes[:1] if observed.rpc == self.routes[0].stream else self.routes
        contexts: list[RequestContext] = []

        @asynccontextmanager
        async def arrived() -> AsyncIterator[None]:
            observed.since = time.perf_counter()  # exclude the time of the upload
            contexts.append(self.callee.arrive(observed.rpc, headers))
            async with time_limit(contexts[0]):
                yield

        def understand(fields: json_bodies.Fields, form: bool) -> tuple[Route, Message, bool]:
            route = next((r for r in routes if json_bodies.knows(r.request, fields)), routes[0])
            observed.rpc = observed.rpc if observed.rpc == route.stream else route.rpc
            single = json_bodies.is_single(route.request, fields)
            most = most_values(settings)
            return route, json_bodies.to_message(route.request, fields, form, most), single

        settings = self.callee.settings
        most_bytes, most_parts = settings.max_request_bytes, form_parts(settings)
        found = await json_bodies.read(
            request, most_bytes, most_parts, self.arrivals, understand, arrived
        )
        return *found, contexts[0]


def _render(route: Route, message: Message, reply: Message, single: bool, as_png: bool) -> Response:
    draw = overlay.DRAWN.get(route.rpc)
    if draw and as_png:
        return Response(draw(message, reply), media_type="image/png")
    values = json_bodies.to_json(reply)
    if single and isinstance(message, pb.ClassifyRequest) and not message.areas:
        (only,) = values["results"]
        values = {"image": only["image"], "results": only["scores"], "model": values["model"]}
    return LongJSON(values)


def _line(answer: Message) -> bytes:
    return bytes(LongJSON(json_bodies.to_json(answer)).body) + b"\n"


def problem(error: Exception, identity: str) -> Response:
    """Return an error as application/problem+json (RFC 9457)."""
    failure = status.describe(error, identity)
    known = failure.status
    return _problem(known.http, known.title, failure.message, identity, failure.headers)


async def _refuse(request: Request, error: Exception) -> Response:
    """Answer a request for an unknown path or with an unsupported method."""
    assert isinstance(error, HTTPException)
    known = ", ".join(dict.fromkeys(r.path for routes in ROUTES.values() for r in routes))
    path = request.url.path.removeprefix(request.scope["root_path"])
    detail = f"{request.method} {path} is not a route here: GET /docs, or POST to {known}"
    identity = request.headers.get(REQUEST_ID_HEADER, "")
    title = HTTPStatus(error.status_code).phrase
    return _problem(error.status_code, title, detail, identity, headers=error.headers)


def _problem(
    code: int,
    title: str,
    detail: str,
    identity: str,
    headers: Mapping[str, str] | None = None,
) -> Response:
    body = {
        "type": "about:blank",
        "title": title,
        "status": code,
        "detail": detail,
        "request_id": identity,
    }
    return JSONResponse(body, code, headers, media_type="application/problem+json")
