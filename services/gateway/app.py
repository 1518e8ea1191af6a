"""The gateway: pages, documentation, readiness and metrics of the whole service, and adapters.

It also serves grpc.health.v1. Server reflection is Serve's, the same in every replica.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import samclip
from fastapi import FastAPI
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from prometheus_client import Metric
from ray import serve
from samclip.v1 import samclip_pb2 as pb
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Send

from samclip_core.answers.vocabularies import names_of
from samclip_core.errors import NotFound, Overloaded
from samclip_core.io import checkpoint
from services.deployment import replica
from services.gateway import browser_decoder, heads, openapi, scrape
from services.gateway.adapters.adapter import MAX_AT_ONCE, Applications, answering
from services.gateway.adapters.label_studio.routes import LabelStudio
from services.gateway.adapters.open_inference.routes import InferenceService, OpenInference
from services.gateway.adapters.openai.routes import OpenAI
from services.gateway.adapters.x_anylabeling.routes import XAnyLabeling
from services.gateway.readiness import Readiness
from services.observability import logs, metrics, tracing
from services.request import as_bytes, calls, http
from services.request.routes import CUSTOM, HEAD, SERVICES
from services.request.rpc import grpc_call
from services.request.to_json import to_json
from services.settings import Settings

PAGES = Path(__file__).with_name("playground")
PAGE = ["GET", "HEAD"]
VERSION = "x-samclip-version"
"""Trailing metadata of Health/Check: the version of this service."""
WATCH_S = 1.0
MAX_WATCHERS = 64
"""Maximum number of concurrent Health/Watch calls: each takes a slot until it disconnects."""

CERTIFICATE_END = "x-samclip-certificate-end"
"""Header of the front door: when its certificate ends, as Unix time."""

MAX_ONGOING = replica.MAX_ONGOING + MAX_AT_ONCE + MAX_WATCHERS
"""Requests at once: pages, those of the adapters, and watchers."""


class Gateway(InferenceService, heads.CustomHeads):
    """The ingress of the application ``gateway``."""

    def __init__(self, settings: Settings):
        logs.start(settings.log_level)
        if settings.otlp_endpoint:
            tracing.start("gateway", settings.otlp_endpoint)
        self.readiness = Readiness(settings)
        self.about = settings.model_dump(include={"grpc_port", "max_metadata_bytes"})
        self.about |= {"names": names_of("coco")}
        self.runtime = browser_decoder.folder(settings.browser_decoder)
        self.about |= {"decoder": self.runtime is not None}
        self.watchers = 0
        self.applications = Applications(settings)

    def __serve_build_asgi_app__(self) -> FastAPI:
        own = partial(heads.described, self.applications)
        app = pages(self.readiness, scrape.of_cluster, self.about, own)
        if self.runtime:  # before the folder that it is in
            files = StaticFiles(directory=self.runtime)
            app.routes.insert(0, Mount("/playground/onnxruntime", files))
        add_models(app, self.applications)
        app.routes.extend(heads.routes(self.applications))
        add_adapters(app, self.applications, self.readiness)
        return app

    async def Check(self, request: HealthCheckRequest, grpc_context: Any) -> HealthCheckResponse:
        with grpc_call(grpc_context) as headers:
            calls.check(headers)
            grpc_context.set_trailing_metadata([(VERSION, samclip.__version__)])
            status = await self._status(request.service)
            if status == HealthCheckResponse.SERVICE_UNKNOWN:
                raise NotFound(f"unknown service {request.service[:80]!r}")
            return HealthCheckResponse(status=status)
        return HealthCheckResponse()

    async def Watch(
        self, request: HealthCheckRequest, grpc_context: Any
    ) -> AsyncIterator[HealthCheckResponse]:
        """Send the status now and after each change, until the caller or Serve ends the call."""
        with grpc_call(grpc_context) as headers:
            calls.check(headers)
            if self.watchers >= MAX_WATCHERS:
                raise Overloaded(
                    f"there are {MAX_WATCHERS} watchers already: use Health/Check, or try again "
                    "later"
                )
            self.watchers += 1
            try:
                last = None
                while True:
                    status = await self._status(request.service)
                    if status != last:
                        yield HealthCheckResponse(status=status)
                    last = status
                    await asyncio.sleep(WATCH_S)
            finally:
                self.watchers -= 1

    async def _status(self, service: str) -> HealthCheckResponse.ServingStatus:
        report = await self.readiness.report()
        if not service:
            ready = await self.readiness.all_ready()
        elif service == CUSTOM:
            ready = all(report[name]["ready"] for name in report if name.startswith(HEAD))
        elif SERVICES.get(service) in report:
            ready = report[SERVICES[service]]["ready"]
        else:
            return HealthCheckResponse.SERVICE_UNKNOWN
        return HealthCheckResponse.SERVING if ready else HealthCheckResponse.NOT_SERVING


def pages(
    readiness: Readiness,
    counted: Callable[[], Awaitable[dict[str, list[Metric]]]],
    about: Mapping[str, Any],
    own_heads: Callable[[Mapping[str, str]], Awaitable[Sequence[pb.ListedHead]]],
) -> FastAPI:
    """Make the routes that belong to no single model service; ``counted`` returns the metrics.

    ``about`` is what the playground has to know of the service; ``own_heads`` returns those for
    the caller with these headers.
    """
    app = http.new_app()
    schema = openapi.document()

    @app.api_route("/", methods=PAGE)
    async def play() -> FileResponse:
        return FileResponse(PAGES / "index.html")

    @app.api_route("/playground/service.json", methods=PAGE)
    async def service() -> Mapping[str, Any]:
        return about

    @app.api_route("/healthz", methods=PAGE)
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @app.api_route("/readyz", methods=PAGE)
    async def ready() -> JSONResponse:
        report = await readiness.report()
        all_ready = all(state["ready"] for state in report.values())
        return JSONResponse({"ready": all_ready, "services": report}, 200 if all_ready else 503)

    @app.api_route("/metrics", methods=PAGE)
    async def counters(request: Request) -> Response:
        report, nodes = await asyncio.gather(readiness.report(), counted())
        shared = [metrics.ready({name: state["ready"] for name, state in report.items()})]
        if end := request.headers.get(CERTIFICATE_END):
            shared.append(metrics.certificate(float(end)))
        text = scrape.render(nodes, *shared)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.api_route("/openapi.json", methods=PAGE)
    async def describe(request: Request) -> JSONResponse:
        return JSONResponse(openapi.with_heads(schema, await own_heads(request.headers)))

    @app.api_route("/docs/", methods=PAGE)
    async def without_slash() -> RedirectResponse:
        return RedirectResponse("/docs")

    @app.api_route("/docs", methods=PAGE)
    async def documentation() -> FileResponse:
        return FileResponse(PAGES / "docs.html")

    # Swagger's files come from a package, so that browsers need no other host.
    app.mount("/docs/static", StaticFiles(packages=[("fastapi_offline", "static")]))
    app.mount("/playground", StaticFiles(directory=PAGES))
    return app


def add_models(app: FastAPI, applications: Applications) -> None:
    """Add ``GET /models``, which answers as the rpc ListModels does, and each model's decoder."""

    async def answer(request: Request, headers: Mapping[str, str], send: Send) -> None:
        async with answering(applications, "gateway", "ListModels", headers) as (context, _):
            reply = await applications.call("ListModels", pb.ListModelsRequest(), context)
            response = JSONResponse(to_json(reply))
            await http.sent(response, context.reply.reserved, request, send)

    async def decoder(request: Request, headers: Mapping[str, str], send: Send) -> None:
        async with answering(applications, "gateway", "GetDecoder", headers) as (context, _):
            known = request.headers.get("if-none-match", "").removeprefix("W/").strip('"')
            name = request.path_params["name"]
            wanted = pb.GetDecoderRequest(model=name, known=known[: checkpoint.DIGITS])
            reply = await applications.call("GetDecoder", wanted, context)
            about = {"etag": f'"{reply.digest}"', as_bytes.MODEL: reply.model.digest}
            # The name may get other files. A key, if one is needed, is in a header.
            about["cache-control"] = "private, no-cache"
            code = 200 if reply.onnx else 304
            response = Response(reply.onnx, code, about, as_bytes.BYTES)
            await http.sent(response, context.reply.reserved, request, send)

    for path, handle in (("/models", answer), ("/models/{name}/decoder.onnx", decoder)):
        app.routes.append(Route(path, http.Endpoint(handle, http.problem), methods=["GET"]))


def add_adapters(app: FastAPI, applications: Applications, readiness: Readiness) -> None:
    """Add the routes of all foreign protocols."""
    OpenAI(applications).add_to(app)
    OpenInference(applications, readiness).add_to(app)
    LabelStudio(applications).add_to(app)
    XAnyLabeling(applications).add_to(app)


def build(settings: Settings) -> serve.Application:
    """Return the application for ``serve.run``."""
    deployed = serve.deployment(
        serve.ingress()(Gateway),
        name="gateway",
        max_ongoing_requests=MAX_ONGOING,
        **replica.HEALTH,
        ray_actor_options={"num_cpus": 0},
    )
    return deployed.bind(settings)
