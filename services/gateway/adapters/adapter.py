"""The base of the HTTP adapters: key, limits, deadline, metrics and errors as everywhere."""

import logging
import reprlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import combinations, starmap
from typing import Any, ClassVar, TypeVar, get_type_hints

import cv2
import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from samclip.rpcs import RPCS
from samclip.v1 import samclip_pb2 as pb
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Send

from samclip_core.errors import AnotherCheckpoint, InvalidRequest, NotFound
from samclip_core.io import checkpoint
from services.request import bodies, calls, messages, request_log, status, wire
from services.request.calls import Peer
from services.request.context import RequestContext, time_limit
from services.request.fan_out import each
from services.request.http import Endpoint, sent
from services.request.routes import SERVICES
from services.request.rpc import grpc_call
from services.request.transit import MAX_BODIES, Budget, parsed
from services.settings import Settings

T = TypeVar("T")
Answer = Callable[[Request, RequestContext], Awaitable[Response]]
SPECK = 0.02  # of the area of a mask's largest part: smaller parts have no outline
MAX_AT_ONCE = 256
"""Requests of all adapters that a gateway works on; its own pages have places of their own."""
MOST_NAME = 256
"""Characters of a name or an id that are looked up."""
_APPLICATIONS = {
    rpc: SERVICES[method.containing_service.full_name]
    for rpc, method in RPCS.items()
    if method.containing_service.full_name in SERVICES
}
"""The application that answers each rpc."""


logger = logging.getLogger(__name__)


class Applications:
    """The rpcs of all applications, called for a caller who speaks another protocol.

    All adapters share it, and its limits on requests at once and on bodies in transit.
    """

    def __init__(self, settings: Settings, most: int = MAX_AT_ONCE):
        self.settings = settings
        # Slow uploads must not take all places.
        self.arrivals = Budget("request bodies", MAX_BODIES * settings.max_request_bytes, most // 2)
        self.places = Budget("requests of other protocols", 0, most)
        self._names: tuple[str, ...] = ()  # of the default model that answered last
        self._served: dict[str, str] = {}  # the names of models, by these and by their digests
        self._default = ""  # the name of the default one
        self._peers: dict[str, Peer] = {}

    async def call(
        self, rpc: str, request: Any, context: RequestContext, application: str = ""
    ) -> Any:
        """Return the reply to one request, whose bytes are held until the end of the caller's.

        An ``application`` is needed for the rpcs of a head of one's own. Raises the application's
        errors, Unavailable, and Overloaded if there is no room for it.
        """
        application = application or _APPLICATIONS[rpc]
        if context.model:
            request.model = context.model
        if application not in self._peers:
            self._peers[application] = Peer.of(self.settings, application)
        counted = request_log.COUNTED, "1"
        reply = await self._peers[application].call(rpc, request, context, counted)
        context.reply.reserved.hold(reply.ByteSize())
        return reply

    async def embed(
        self, texts: Sequence[str], images: Sequence[pb.Image], context: RequestContext
    ) -> tuple[pb.ModelInfo, Sequence[NDArray[np.float32]], list[NDArray[np.float32]]]:
        """Return one model, and its embeddings D of texts and images. Raises AnotherCheckpoint."""
        models = list[pb.ModelInfo]()

        async def embed(image: pb.Image) -> NDArray[np.float32]:
            request = pb.EmbedRequest(image=image, outputs=[pb.CLIP_POOLED], inline=True)
            reply = await self.call("Embed", request, context)
            models.append(reply.model)
            return wire.from_tensor(reply.tensors[0]).astype(np.float32)

        seen = await each(embed, images)
        read_TD: Sequence[NDArray[np.float32]] = ()
        if texts:
            reply = await self.call("EmbedText", pb.EmbedTextRequest(texts=texts), context)
            models.append(reply.model)
            read_TD = list(wire.from_tensor(reply.tensor))
        self.check_same(models)
        return next(iter(models), pb.ModelInfo()), read_TD, seen

    def check_same(self, models: Sequence[pb.ModelInfo]) -> None:
        """Raise AnotherCheckpoint unless one checkpoint has answered all parts of a request."""
        parts = {model.digest + model.graphs for model in models}
        if not all(starmap(checkpoint.agree, combinations(parts, 2))):
            raise AnotherCheckpoint("the model was swapped during the request: send it again")

    async def find_model(self, context: RequestContext) -> pb.ModelInfo:
        """Return the model that answers now."""
        return (await self.embed(["a photo"], [], context))[0]

    def check(self, name: object, model: pb.ModelInfo, context: RequestContext) -> None:
        """Raise NotFound unless ``name`` is the name or the id of the model that has answered."""
        names = model.name, wire.model_id(model)
        if not context.model:
            self._names = names
        if name not in (*names, context.model or names[0]):
            raise NotFound(f"the model is {names[1]!r}, not {reprlib.repr(name)}: send that")

    async def listed(self, context: RequestContext) -> list[pb.ServedModel]:
        """Return the models that requests can name, the default one first."""
        reply = await self.call("ListModels", pb.ListModelsRequest(), context)
        found = sorted(reply.models, key=lambda model: not model.default)
        self._served = {f"@{model.digest[:12]}": model.name for model in found[:0:-1]}
        self._served |= {model.name: model.name for model in found}
        self._default = found[0].name
        return found

    async def naming(self, name: object, context: RequestContext) -> RequestContext:
        """Return the context of a request for the model of this name or id.

        The name of another model comes before that of the default's checkpoint. Raises NotFound if
        no model ever had it. The model may change meanwhile: ``check`` that of the reply as well.
        """
        key = name[:MOST_NAME] if isinstance(name, str) else ""
        key = f"@{key.partition('@')[2][:12]}" if "@" in key else key
        if key not in self._served and (name not in self._names or not self._served):
            await self.listed(context)
        if name in self._names and self._served.get(key, self._default) == self._default:
            return context
        if key in self._served:
            return replace(context, model=self._served[key])
        self.check(name, await self.find_model(context), context)
        return context

    async def close(self) -> None:
        for peer in self._peers.values():
            await peer.close()


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
                await sent(response, context.reply.reserved, request, send)

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

    async def read(self, request: Request, context: RequestContext) -> bodies.Fields:
        """Return the members of the body. It is read as JSON whatever its content type.

        Raises the errors of ``bodies.whole`` and ``bodies.parse_object``.
        """
        kind = request.headers.get("content-type", "")
        return await self.parsed(request, context, lambda body: bodies.parse_object(body, kind))

    async def parsed(
        self, request: Request, context: RequestContext, parse: Callable[[bytes], T]
    ) -> T:
        """Return ``parse(body)``, which runs in a thread. Raises the errors of both."""
        most = self.settings.max_request_bytes
        async with bodies.whole(request, most, self.applications.arrivals) as chunks:
            return await parsed(context.priority, chunks, lambda: parse(b"".join(chunks)))


@asynccontextmanager
async def answering(
    applications: Applications, service: str, rpc: str, headers: Mapping[str, str]
) -> AsyncIterator[tuple[RequestContext, request_log.Observed]]:
    """Record one request, hold a place for it, and limit its time; yield its context.

    Raises Overloaded, DeadlineExceeded, and Unauthenticated and PermissionDenied: adapters only
    query, which needs the scope read.
    """
    with request_log.record(service, rpc, headers) as observed, applications.places.reserve():
        context = RequestContext.read(headers, applications.settings)
        context.caller.check("read")
        with context.reply.reserved:
            async with time_limit(context):
                yield context, observed


def over_grpc(service: str) -> Callable[[Callable[[Any, Any, RequestContext], Any]], Any]:
    """Wrap ``async method(self, request, context)`` as a gRPC method of a ``service``'s class.

    The class has ``applications``.
    """

    def wrap(method: Callable[[Any, Any, RequestContext], Any]) -> Any:
        rpc, empty = method.__name__, get_type_hints(method)["return"]

        async def over_grpc(self: Any, request: Any, grpc_context: Any) -> Any:  # Serve's name
            with grpc_call(grpc_context) as headers:
                calls.check(headers)
                async with answering(self.applications, service, rpc, headers) as (context, _):
                    return await method(self, request, context)
            return empty()

        return over_grpc

    return wrap


def image_of(text: Any, what: str) -> pb.Image:
    """Return the image in a data URI or in plain base64; ``what`` names it.

    Raises InvalidRequest for anything else.
    """
    if not isinstance(text, str) or not text:
        raise InvalidRequest(f"{what} is not an image: send a data URI or base64")
    messages.refuse_address(text)
    return messages.to_message(pb.Image, {"encoded": text}, form=False)


def best_of_each(result: pb.PromptResult) -> list[pb.Mask]:
    """Return the best mask of each thing: its other sizes would lie below it."""
    things = [*result.things]
    return [result.masks[things.index(number)] for number in dict.fromkeys(things)]


def outlines(mask: pb.Mask) -> list[NDArray[np.float32]]:
    """Return N×2 pixels for each part of a mask: what a tool for annotators makes a shape of.

    Holes, which would become shapes of their own, and specks are left out.
    """
    rings = [np.array(polygon.xy, np.float32).reshape(-1, 2) for polygon in mask.polygons.polygons]
    areas = [cv2.contourArea(ring_N2, oriented=True) for ring_N2 in rings]  # of holes negative
    return [ring for ring, area in zip(rings, areas, strict=True) if area > SPECK * max(areas)]
