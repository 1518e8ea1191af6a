"""HTTP in front of the gRPC methods: body to message, call, message to body.

The ingress class of an application returns ``application(NAME, self)`` from
``__serve_build_asgi_app__``, which Serve calls after the constructor.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from http import HTTPStatus
from itertools import groupby
from operator import attrgetter
from typing import Any, ClassVar, Protocol

from fastapi import FastAPI
from google.protobuf.message import Message
from samclip.v1 import samclip_pb2 as pb
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from samclip_core.errors import SamClipError, Unauthenticated
from services.request import admission, json_bodies, overlay, request_log, status
from services.request.arrival import Arrivals
from services.request.limits import form_parts, most_values
from services.request.routes import ROUTES, Route
from services.settings import Settings

REQUEST_ID_HEADER = "x-request-id"
LINES = "application/x-ndjson"
"""The media type of JSON objects, one per line."""
SMALL_REPLY = 4096
"""Bytes of a message that becomes JSON on the event loop: 0.4 ms is not worth a thread."""

Endpoint = Callable[[Request], Awaitable[Response]]


class Callee(Protocol):
    """The ingress of an application; see ``services.request.rpc.Service``."""

    name: ClassVar[str]
    settings: Settings

    async def respond(
        self, method: str, request: Message, metadata: Mapping[str, str]
    ) -> Message: ...

    def respond_in_parts(
        self, method: str, request: Message, metadata: Mapping[str, str]
    ) -> AsyncGenerator[Message, None]: ...


def application(name: str, callee: Callee, arrivals: Arrivals | None = None) -> FastAPI:
    """Build the HTTP side of one application: its POST routes, and GET /healthz for the gateway."""
    app = protected()
    arrivals = arrivals or Arrivals()
    for path, routes in groupby(ROUTES[name], attrgetter("path")):
        app.add_route(path, _endpoint(tuple(routes), callee, arrivals), methods=["POST"])

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


def _endpoint(routes: Sequence[Route], callee: Callee, arrivals: Arrivals) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        identity = request.headers.get(REQUEST_ID_HEADER) or uuid.uuid4().hex
        headers = {**request.headers, request_log.REQUEST_ID: identity}
        if routes[0].stream and LINES in request.headers.get("accept", ""):
            return _InParts(request, headers, routes[0], callee, arrivals)
        try:
            # An error raised before the rpc is known is counted under the first candidate.
            with request_log.request(callee.name, routes[0].rpc, headers) as observed:
                return await _answer(request, headers, routes, callee, arrivals, observed)
        except Exception as error:
            return problem(error, identity)

    return endpoint


async def _read(
    request: Request,
    routes: Sequence[Route],
    callee: Callee,
    arrivals: Arrivals,
    observed: request_log.Observed,
) -> tuple[Route, Message, bool]:
    """Read the request: the route whose fields it has, its message, and whether it is single."""

    def understand(fields: json_bodies.Fields, form: bool) -> tuple[Route, Message, bool]:
        observed.since = time.perf_counter()  # exclude the time of the upload
        route = next((r for r in routes if json_bodies.knows(r.request, fields)), routes[0])
        observed.rpc = observed.rpc if observed.rpc == route.stream else route.rpc
        single = json_bodies.is_single(route.request, fields)
        most = most_values(callee.settings)
        return route, json_bodies.to_message(route.request, fields, form, most), single

    most_bytes, most_parts = callee.settings.max_request_bytes, form_parts(callee.settings)
    return await json_bodies.read(request, most_bytes, most_parts, arrivals, understand)


async def _answer(
    request: Request,
    headers: Mapping[str, str],
    routes: Sequence[Route],
    callee: Callee,
    arrivals: Arrivals,
    observed: request_log.Observed,
) -> Response:
    route, message, single = await _read(request, routes, callee, arrivals, observed)
    reply = await callee.respond(route.rpc, message, headers)
    draw = overlay.DRAWN.get(route.rpc)
    if draw and "image/png" in request.headers.get("accept", ""):
        png = await asyncio.to_thread(draw, message, reply)
        return Response(png, media_type="image/png")
    values = await _values(reply)
    if single and isinstance(message, pb.ClassifyRequest) and not message.areas:
        (only,) = values["results"]
        values = {"image": only["image"], "results": only["scores"], "model": values["model"]}
    return JSONResponse(values)


async def _values(reply: Message) -> Any:
    if reply.ByteSize() <= SMALL_REPLY:
        return json_bodies.to_json(reply)
    return await asyncio.to_thread(json_bodies.to_json, reply)


class _InParts(Response):
    """The answers of a streaming rpc, one JSON object per line, sent as they come.

    An error before the first one has its own status; a later one is the last line.
    """

    def __init__(
        self,
        request: Request,
        headers: Mapping[str, str],
        route: Route,
        callee: Callee,
        arrivals: Arrivals,
    ):
        super().__init__()
        self.request, self.route, self.callee, self.arrivals = request, route, callee, arrivals
        self.metadata = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        try:
            async with aclosing(self._lines()) as lines:
                async for line in lines:
                    if not started:
                        kind = [(b"content-type", LINES.encode())]
                        await send({"type": "http.response.start", "status": 200, "headers": kind})
                        started = True
                    await send({"type": "http.response.body", "body": line, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except Exception as error:
            failed = problem(error, self.metadata[request_log.REQUEST_ID])
            if started:
                await send({"type": "http.response.body", "body": bytes(failed.body) + b"\n"})
            else:
                await failed(scope, receive, send)

    async def _lines(self) -> AsyncGenerator[bytes, None]:
        with request_log.request(self.callee.name, self.route.stream, self.metadata) as observed:
            _, message, _ = await _read(
                self.request, (self.route,), self.callee, self.arrivals, observed
            )
            answers = self.callee.respond_in_parts(self.route.stream, message, self.metadata)
            async with aclosing(answers):
                async for answer in answers:
                    yield json.dumps(await _values(answer)).encode() + b"\n"


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
