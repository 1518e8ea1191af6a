"""The HTTP side of a service: body to message, answer, message to body."""

import asyncio
import functools
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import ExitStack, aclosing
from http import HTTPStatus
from typing import Any, Protocol

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
from services.request import as_bytes, bodies, calls, messages, overlay, request_log, status
from services.request.bodies import LongJSON
from services.request.context import RequestContext, time_limit
from services.request.limits import form_parts, most_values
from services.request.routes import ROUTES, Route, other_names, routes_of
from services.request.to_json import to_json
from services.request.transit import (
    MAX_BODIES,
    PACE,
    Budget,
    Pace,
    Reserved,
    paced,
    parsed,
    rendered,
)
from services.settings import Settings

REQUEST_ID_HEADER = "x-request-id"
LINES = "application/x-ndjson"
"""The media type of JSON objects, one per line."""
BODY = "http.response.body"
READER = "samclip.reader"
"""The name in the scope of two functions: one closes the connection at once, whatever is unsent,
and the other returns how many bytes the caller has not taken yet."""
NOBODY: tuple[Callable[[], object], Callable[[], int]] = lambda: None, lambda: 0
"""Stands for READER where a test calls the application."""
START_OF_LINES = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", LINES.encode())],
}

Render = Callable[[str, Message, Message, bool], Response]
"""Makes the reply of an rpc from its messages, and whether its image is a single one."""
Handler = Callable[[Request, Mapping[str, str], Send], Awaitable[None]]
"""Answers a request, whose headers have its id, until the caller has taken the reply."""


class Service(Protocol):
    """The ingress of an application; see ``services.request.rpc``."""

    name: str
    settings: Settings

    def arrive(self, method: str, headers: Mapping[str, str]) -> RequestContext: ...

    async def answer(self, method: str, request: Message, context: RequestContext) -> Message: ...

    def answers(
        self, method: str, request: Message, context: RequestContext
    ) -> AsyncGenerator[Message, None]: ...

    async def health(self) -> dict[str, Any]: ...


def application(
    name: str, service: Service, arrivals: Budget | None = None, pace: Pace = PACE
) -> FastAPI:
    """Build the HTTP side of one application: its POST routes, and GET /healthz for the gateway."""
    app = new_app()
    arrivals = arrivals or Budget("request bodies", MAX_BODIES * service.settings.max_request_bytes)
    for route in routes_of(name):
        endpoint = Endpoint(_Handler(route, service, arrivals, pace), problem)
        app.routes.append(routing.Route(route.path, endpoint, methods=["POST"]))

    @app.get("/healthz")
    async def health(request: Request) -> Response:
        """Return the application's report: its model, its cache and its dependencies."""
        try:
            return JSONResponse(await service.health())
        except SamClipError as error:
            return problem(error, request.headers.get(REQUEST_ID_HEADER, ""))

    return app


def new_app() -> FastAPI:
    """Build an app without routes for the front door's requests; errors are problem documents."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    app.add_middleware(OnlyThroughFrontDoor)
    app.add_exception_handler(HTTPException, _refuse)
    return app


class OnlyThroughFrontDoor:
    """ASGI middleware that refuses requests without the front door's secret.

    It stands before each application, and before the ports of Serve's processes, where the path
    ``unchecked`` is open to Serve's own health checks.
    """

    def __init__(self, app: ASGIApp, unchecked: str = ""):
        self.app, self.unchecked = app, unchecked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        headers = Headers(scope=scope) if kind == "http" else {}
        unchecked = kind == "lifespan" or (kind == "http" and scope["path"] == self.unchecked)
        if unchecked or calls.admitted(headers):
            await self.app(scope, receive, send)
            return
        refusal = problem(Unauthenticated(calls.REFUSAL), headers.get(REQUEST_ID_HEADER, ""))
        await refusal(scope, receive, send)


class Endpoint:
    """ASGI application of one route: a request ends with the last byte of its reply.

    ``failed`` makes the reply of an error. An error after the first byte closes the connection.
    """

    def __init__(self, handle: Handler, failed: Callable[[Exception, str], Response]):
        self.handle, self.failed = handle, failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, begun = Request(scope, receive), False
        identity = request.headers.get(REQUEST_ID_HEADER) or uuid.uuid4().hex
        headers = {**request.headers, request_log.REQUEST_ID: identity}

        async def begin(event: Event) -> None:
            nonlocal begun
            begun = True
            await send(event)

        try:
            await self.handle(request, headers, begin)
        except Exception as error:
            if begun:
                abort, _ = scope.get(READER, NOBODY)
                abort()  # a mere end would wait for the reader
                raise asyncio.CancelledError from error
            await self.failed(error, identity)(scope, receive, send)


class _Handler:
    """The handler of one route."""

    def __init__(self, route: Route, service: Service, arrivals: Budget, pace: Pace):
        self.route, self.service, self.arrivals, self.pace = route, service, arrivals, pace
        self.others = other_names(route.path)

    async def __call__(self, request: Request, headers: Mapping[str, str], send: Send) -> None:
        if self.route.stream and LINES in request.headers.get("accept", ""):
            await self._send_lines(request, headers, send)
            return
        with (
            request_log.record(self.service.name, self.route.rpc, headers) as observed,
            ExitStack() as held,
        ):
            response, context = await self._answer(request, headers, observed, held)
            observed.until = time.perf_counter()
            async with time_limit(context):
                await sent(response, context.reply.reserved, request, send, self.pace)

    async def _answer(
        self,
        request: Request,
        headers: Mapping[str, str],
        observed: request_log.Observed,
        held: ExitStack,
    ) -> tuple[Response, RequestContext]:
        """Return the reply, whose messages are not kept while the caller takes it.

        Its bytes are ``held``.
        """
        message, single, context = await self._read(request, headers, observed)
        reserved = held.enter_context(context.reply.reserved)
        accept = request.headers.get("accept", "")
        render: Render = _render
        if "image/png" in accept and observed.rpc in overlay.DRAWN:
            render = _draw
        elif as_bytes.BYTES in accept and isinstance(message, pb.EmbedRequest):
            as_bytes.prepare(message)
            render = _bytes
        reply = await self.service.answer(observed.rpc, message, context)
        async with time_limit(context):
            reserved.set(size := reply.ByteSize())
            make = functools.partial(render, observed.rpc, message, reply, single)
            return await rendered(context.priority, size, make), context

    async def _send_lines(self, request: Request, headers: Mapping[str, str], send: Send) -> None:
        """Send the answers of a streaming rpc as they come, one JSON object per line.

        An error after the first one is the last line.
        """
        begun = False
        try:
            with request_log.record(self.service.name, self.route.stream, headers) as observed:
                message, _, context = await self._read(request, headers, observed)
                reserved = context.reply.reserved
                take = paced(send, self.pace, reserved)
                with reserved:
                    answers = self.service.answers(observed.rpc, message, context)
                    async with aclosing(answers):
                        async for answer in answers:
                            make = functools.partial(_line, answer)
                            line = await rendered(context.priority, answer.ByteSize(), make)
                            reserved.set(len(line))
                            reserved.begin_sending(*request.scope.get(READER, NOBODY))
                            async with time_limit(context):
                                if not begun:
                                    await take(START_OF_LINES)
                                begun = True
                                await take({"type": BODY, "body": line, "more_body": True})
                            reserved.end_sending()
            await send({"type": BODY, "body": b""})
        except Exception as error:
            if not begun or isinstance(error, RequestTooSlow):
                raise
            failed = problem(error, headers[request_log.REQUEST_ID])
            await send({"type": BODY, "body": bytes(failed.body) + b"\n"})

    async def _read(
        self, request: Request, headers: Mapping[str, str], observed: request_log.Observed
    ) -> tuple[Message, bool, RequestContext]:
        """Return the message of a request, whether its image is a single one, and its context."""
        settings, kind = self.service.settings, request.headers.get("content-type", "")
        is_form = bodies.is_form(kind)

        def message() -> tuple[Message, bool]:
            fields = bodies.parse(chunks, kind, form_parts(settings))
            wanted = self.route.request
            for name, other in self.others.items():
                known = other.request.DESCRIPTOR.fields_by_name.keys()
                if name in fields and not fields.keys() - known:
                    observed.rpc, wanted = other.rpc, other.request
            single = messages.is_single(wanted, fields)
            return messages.to_message(wanted, fields, is_form, most_values(settings)), single

        most = settings.max_request_bytes
        async with bodies.whole(request, most, self.arrivals, self.pace) as chunks:
            observed.since = time.perf_counter()  # exclude the time of the upload
            context = self.service.arrive(observed.rpc, headers)
            async with time_limit(context):
                return *await parsed(context.priority, chunks, message), context


async def sent(
    response: Response, reserved: Reserved, request: Request, send: Send, pace: Pace = PACE
) -> None:
    """Send a reply, whose bytes ``reserved`` holds until the caller has taken it.

    Raises Overloaded, and RequestTooSlow for a caller that takes it too slowly.
    """
    reserved.set(len(response.body))
    reserved.begin_sending(*request.scope.get(READER, NOBODY))
    await response(request.scope, request.receive, paced(send, pace, reserved))


def _draw(rpc: str, message: Message, reply: Message, _: bool) -> Response:
    return Response(overlay.DRAWN[rpc](message, reply), media_type="image/png")


def _bytes(_: str, message: Any, reply: Any, __: bool) -> Response:
    return as_bytes.response(message, reply)


def _render(_: str, message: Message, reply: Message, single: bool) -> Response:
    values = to_json(reply)
    if single and isinstance(message, pb.ClassifyRequest) and not message.areas:
        (only,) = values["results"]
        values = {"image": only["image"], "results": only["scores"], "model": values["model"]}
    return LongJSON(values)


def _line(answer: Message) -> bytes:
    return bytes(LongJSON(to_json(answer)).body) + b"\n"


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
