"""The base of the HTTP adapters: key, limits, deadline, metrics and errors as everywhere."""

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, ClassVar, TypeVar

import cv2
import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from samclip.v1 import samclip_pb2 as pb
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Send

from samclip_core.errors import InvalidRequest, NotFound
from services.gateway.adapters.applications import Applications
from services.request import bodies, messages, request_log, status
from services.request.context import RequestContext, time_limit
from services.request.http import Endpoint, sent
from services.request.transit import parsed

T = TypeVar("T")
Answer = Callable[[Request, RequestContext], Awaitable[Response]]
SPECK = 0.02  # of the area of a mask's largest part: smaller parts have no outline

logger = logging.getLogger(__name__)


class Adapter:
    """One foreign protocol. ``name`` is its service in metrics, logs and traces."""

    name: ClassVar[str]
    hides_reasons: ClassVar[bool] = False  # the client shows the status of an error at most

    def __init__(self, applications: Applications):
        self.applications, self.settings = applications, applications.settings
        self._offered: list[str] = []

    def refuse(self, failure: status.Failure) -> dict[str, Any]:
        """Return the body of an error in the protocol's shape; several have this one."""
        return {"error": failure.message}

    def route(self, app: FastAPI, method: str, path: str, answer: Answer) -> None:
        """Add a route, whose ``answer`` is called with the request and its context."""

        async def handle(request: Request, headers: Mapping[str, str], send: Send) -> None:
            asked = answering(self.applications, self.name, answer.__name__, headers)
            async with asked as (context, observed):
                response = await answer(request, context)
                observed.until = time.perf_counter()
                await sent(response, context.reply.place, request, send)

        def failed(error: Exception, identity: str) -> Response:
            failure = status.describe(error, identity)
            if self.hides_reasons:
                logger.warning("%s was refused: %s", self.name, failure.message)
            return JSONResponse(self.refuse(failure), failure.status.http, failure.headers)

        app.routes.append(Route(path, Endpoint(handle, failed), methods=[method]))
        self._offered.append(f"{method} {path}")

    def refuse_others(self, app: FastAPI, prefix: str) -> None:
        """Refuse all other paths below a prefix, with an error in the protocol's shape."""
        offered = ", ".join(self._offered)

        async def unknown(request: Request, context: RequestContext) -> Response:
            asked = f"{request.method} {prefix}{request.path_params['rest'][:80]}"
            raise NotFound(f"{asked} is not offered: use {offered}")

        for method in ("GET", "POST", "DELETE"):
            self.route(app, method, f"{prefix}{{rest:path}}", unknown)

    async def read(self, request: Request) -> bodies.Fields:
        """Return the members of the body. It is read as JSON whatever its content type.

        Raises the errors of ``bodies.whole`` and ``bodies.parse_object``.
        """
        kind = request.headers.get("content-type", "")
        return await self.parsed(request, lambda body: bodies.parse_object(body, kind))

    async def parsed(self, request: Request, parse: Callable[[bytes], T]) -> T:
        """Return ``parse(body)``, which runs in a thread. Raises the errors of both."""
        most = self.settings.max_request_bytes
        async with bodies.whole(request, most, self.applications.arrivals) as chunks:
            return await parsed(chunks, lambda: parse(b"".join(chunks)))


@asynccontextmanager
async def answering(
    applications: Applications, service: str, rpc: str, headers: Mapping[str, str]
) -> AsyncIterator[tuple[RequestContext, request_log.Observed]]:
    """Record one request, hold a place for it, and limit its time; yield its context.

    Raises Overloaded, DeadlineExceeded, and Unauthenticated and PermissionDenied: adapters only
    query, which needs the scope read.
    """
    with request_log.request(service, rpc, headers) as observed, applications.places.place():
        context = RequestContext.read(headers, applications.settings)
        context.caller.check("read")
        with context.reply.place:
            async with time_limit(context):
                yield context, observed


def image_of(text: Any, what: str) -> pb.Image:
    """Return the image in a data URI or in plain base64; ``what`` names it.

    Raises InvalidRequest for anything else.
    """
    if not isinstance(text, str) or not text:
        raise InvalidRequest(f"{what} is not an image: send a data URI or base64")
    messages.refuse_address(text)
    return messages.to_message(pb.Image, {"encoded": text}, form=False)


def outlines(mask: pb.Mask) -> list[NDArray[np.float32]]:
    """Return N×2 pixels for each part of a mask: what a tool for annotators makes a shape of.

    Holes, which would become shapes of their own, and specks are left out.
    """
    rings = [np.array(one.xy, np.float32).reshape(-1, 2) for one in mask.polygons.polygons]
    areas = [cv2.contourArea(ring_N2, oriented=True) for ring_N2 in rings]  # of holes negative
    return [ring for ring, area in zip(rings, areas, strict=True) if area > SPECK * max(areas)]
