"""The Open Inference Protocol over HTTP, with JSON or binary tensors, and over gRPC."""

import json
from typing import Any

import numpy as np
from fastapi import FastAPI
from samclip import __version__
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from samclip_core.errors import InvalidRequest, Unavailable
from services.gateway.adapters.adapter import Adapter, Applications, over_grpc
from services.gateway.adapters.open_inference import models
from services.gateway.adapters.open_inference import open_inference_pb2 as pb
from services.gateway.adapters.open_inference.models import (
    MAX_ELEMENTS,
    InferenceModel,
    Sent,
    Tensors,
    described,
)
from services.gateway.readiness import Readiness
from services.request import bodies
from services.request.bodies import LongJSON
from services.request.context import RequestContext
from services.request.limits import MAX_OUTPUTS, check_most
from services.request.transit import aside, rendered

HEADER = "inference-header-content-length"
"""Bytes of the JSON in front of the binary tensors; without it, all is JSON."""
BINARY, SIZE = "binary_tensor_data", "binary_data_size"
NAME = "samclip"
MAX_NUMBERS = 1_000_000  # of an output as JSON
CONTENTS = {"INT32": "int_contents", "UINT8": "uint_contents", "BYTES": "bytes_contents"}


class OpenInference(Adapter):
    """The protocol over HTTP."""

    name = "OpenInference"

    def __init__(self, applications: Applications, readiness: Readiness):
        super().__init__(applications)
        self.readiness = readiness

    def add_to(self, app: FastAPI) -> None:
        self.route(app, "GET", "/v2", self.server)
        self.route(app, "POST", "/v2/repository/index", self.index)
        self.route(app, "GET", "/v2/health/live", self.live)
        self.route(app, "GET", "/v2/health/ready", self.ready)
        for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            self.route(app, "GET", path, self.metadata)
            self.route(app, "GET", f"{path}/ready", self.model_ready)
            self.route(app, "POST", f"{path}/infer", self.infer)
        self.refuse_others(app, "/v2/")

    async def _asked(
        self, request: Request, context: RequestContext
    ) -> tuple[str, InferenceModel, RequestContext]:
        name, version = request.path_params["model"], request.path_params.get("version", "")
        return name, *await models.find(name, version, self.applications, context)

    async def index(self, request: Request, context: RequestContext) -> Response:
        """List each model with its versions: the default one, and the names of all."""
        served = await self.applications.listed(context)
        rows = [(models.VERSION, served[0]), *((each.name, each) for each in served)]
        return JSONResponse(
            [
                {
                    "name": name,
                    "version": version,
                    "state": "UNAVAILABLE" if each.state == "failed" else "READY",
                    "reason": each.reason,
                }
                for name in models.MODELS
                for version, each in rows
            ]
        )

    async def server(self, request: Request, context: RequestContext) -> Response:
        return JSONResponse({"name": NAME, "version": __version__, "extensions": [BINARY]})

    async def live(self, request: Request, context: RequestContext) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, request: Request, context: RequestContext) -> Response:
        if not await self.readiness.all_ready():
            raise Unavailable("an application is not ready: see GET /readyz")
        return JSONResponse({"ready": True})

    async def model_ready(self, request: Request, context: RequestContext) -> Response:
        name, model, _ = await self._asked(request, context)
        if not await self.readiness.ready(model.application):
            raise Unavailable(f"the application {model.application} is not ready: see GET /readyz")
        return JSONResponse({"name": name, "ready": True})

    async def metadata(self, request: Request, context: RequestContext) -> Response:
        name, model, _ = await self._asked(request, context)
        return JSONResponse(model.metadata(name))

    async def infer(self, request: Request, context: RequestContext) -> Response:
        name, model, context = await self._asked(request, context)
        header = request.headers.get(HEADER, "")
        fields, given = await self.parsed(request, context, lambda body: _read(model, body, header))
        as_bytes, binary = _binary(fields)
        outputs = await model.answer(self.applications, given, [*binary], context)
        reply = {"model_name": name, "model_version": context.model or models.VERSION}
        if fields.get("id") is not None:
            reply["id"] = _text(fields, "id", "the request")
        size = sum(array.nbytes for array in outputs.values())
        return await rendered(
            context.priority, size, lambda: _reply(reply, outputs, binary, as_bytes)
        )


def _read(model: InferenceModel, body: bytes, header: str) -> tuple[bodies.Fields, Tensors]:
    """Return the JSON, and the tensors by name. Raises InvalidRequest."""
    if header and not (len(header) < 12 and header.isdecimal() and int(header) <= len(body)):
        raise InvalidRequest(f"{HEADER} is {header[:20]!r}; the body has {len(body)} bytes")
    start = int(header or len(body))
    fields = bodies.parse_object(body[:start])
    sent: list[Sent] = []
    for tensor in _objects(fields, "inputs"):
        name, shape = _text(tensor, "name"), tensor.get("shape")
        size = _parameters(tensor).get(SIZE)
        if not isinstance(shape, list):
            raise InvalidRequest(f"input {name[:80]!r} has no shape")
        data = tensor.get("data")
        if size is not None:
            if not isinstance(size, int) or not 0 <= size <= len(body) - start:
                raise InvalidRequest(f"input {name[:80]!r}: {SIZE} is not that of its data")
            data = body[start : start + size]
            start += size
        sent.append((name, _text(tensor, "datatype"), shape, data))
    if start != len(body):
        raise InvalidRequest(f"{len(body) - start} bytes after the last binary tensor")
    return fields, model.read(sent)


def _objects(fields: bodies.Fields, name: str) -> list[bodies.Fields]:
    objects = fields.get(name) or []
    if not isinstance(objects, list) or not all(
        isinstance(value, dict) for value in objects[:MAX_OUTPUTS]
    ):
        raise InvalidRequest(f"{name!r} is not a list of objects")
    check_most(len(objects), f"{{}} {name}", MAX_OUTPUTS)
    return objects


def _text(fields: bodies.Fields, name: str, what: str = "a tensor") -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise InvalidRequest(f"{what} has no text as {name!r}: send a string")
    return value


def _parameters(fields: bodies.Fields) -> bodies.Fields:
    parameters = fields.get("parameters")
    return parameters if isinstance(parameters, dict) else {}


def _binary(fields: bodies.Fields) -> tuple[bool, dict[str, bool]]:
    """Return whether outputs are sent as bytes, unless named, and the same of those named."""
    as_bytes = bool(_parameters(fields).get("binary_data_output"))
    return as_bytes, {
        _text(output, "name"): bool(_parameters(output).get("binary_data", as_bytes))
        for output in _objects(fields, "outputs")
    }


def _reply(
    reply: dict[str, Any], arrays: Tensors, binary: dict[str, bool], as_bytes: bool
) -> Response:
    outputs, raw = [], []
    for name, array in arrays.items():
        output = described(name, array)
        if binary.get(name, as_bytes):
            raw.append(array.ravel().view(np.uint8).data)
            output["parameters"] = {SIZE: array.nbytes}
        else:
            what = f"output {name!r} has {{:,}} numbers as JSON"
            check_most(array.size, what, MAX_NUMBERS, "ask for binary data")
            output["data"] = array.ravel().tolist()
        outputs.append(output)
    reply["outputs"] = outputs
    if not raw:
        return LongJSON(reply)
    head = json.dumps(reply).encode()
    headers = {HEADER: str(len(head))}
    body = b"".join((head, *raw))
    return Response(body, headers=headers, media_type="application/octet-stream")


class InferenceService:
    """The protocol over gRPC: the methods of ``inference.GRPCInferenceService``."""

    applications: Applications
    readiness: Readiness

    @over_grpc("OpenInference")
    async def ServerLive(self, request: Any, context: Any) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    @over_grpc("OpenInference")
    async def ServerReady(self, request: Any, context: Any) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=await self.readiness.all_ready())

    @over_grpc("OpenInference")
    async def ServerMetadata(self, request: Any, context: Any) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name=NAME, version=__version__)

    @over_grpc("OpenInference")
    async def ModelReady(
        self, request: pb.ModelReadyRequest, context: RequestContext
    ) -> pb.ModelReadyResponse:
        asked = request.name, request.version
        model, _ = await models.find(*asked, self.applications, context)
        return pb.ModelReadyResponse(ready=await self.readiness.ready(model.application))

    @over_grpc("OpenInference")
    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: RequestContext
    ) -> pb.ModelMetadataResponse:
        asked = request.name, request.version
        model, _ = await models.find(*asked, self.applications, context)
        return pb.ModelMetadataResponse(**model.metadata(request.name))

    @over_grpc("OpenInference")
    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: RequestContext
    ) -> pb.ModelInferResponse:
        asked = request.model_name, request.model_version
        model, context = await models.find(*asked, self.applications, context)
        given = await aside(context.priority, _read_message, model, request)
        check_most(len(request.outputs), "{} outputs", MAX_OUTPUTS)
        wanted = [output.name for output in request.outputs]
        outputs = await model.answer(self.applications, given, wanted, context)
        reply = pb.ModelInferResponse(
            model_name=request.model_name,
            model_version=context.model or models.VERSION,
            id=request.id,
        )

        def fill() -> None:
            for name, array in outputs.items():
                reply.outputs.add(**described(name, array))
                reply.raw_output_contents.append(array.tobytes())

        size = sum(array.nbytes for array in outputs.values())
        await rendered(context.priority, size, fill)
        return reply


def _read_message(model: InferenceModel, request: pb.ModelInferRequest) -> Tensors:
    """Return the tensors by name. Raises InvalidRequest."""
    check_most(len(request.inputs), "{} inputs", MAX_OUTPUTS)
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequest(f"{len(raw)} raw_input_contents for {len(request.inputs)} inputs")

    def data(index: int) -> Any:
        tensor = request.inputs[index]
        values = getattr(tensor.contents, CONTENTS.get(tensor.datatype, "fp32_contents"))
        return raw[index] if raw else values[: MAX_ELEMENTS + 1]

    return model.read(
        (tensor.name, tensor.datatype, tensor.shape, data(index))
        for index, tensor in enumerate(request.inputs)
    )
