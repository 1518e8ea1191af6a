"""The Open Inference Protocol over gRPC: the methods of ``inference.GRPCInferenceService``."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, get_type_hints

from google.protobuf.message import Message
from samclip import __version__

from samclip_core.errors import InvalidRequest
from services.gateway.adapters.adapter import answering
from services.gateway.adapters.applications import Applications
from services.gateway.adapters.open_inference import models
from services.gateway.adapters.open_inference import open_inference_pb2 as pb
from services.gateway.adapters.open_inference.http import NAME
from services.gateway.adapters.open_inference.models import Model, Tensors
from services.gateway.adapters.open_inference.tensors import MAX_ELEMENTS, described
from services.gateway.readiness import Readiness
from services.request import calls
from services.request.context import RequestContext
from services.request.limits import MAX_OUTPUTS, check_most
from services.request.rpc import called
from services.request.transit import rendered

CONTENTS = {"INT32": "int_contents", "UINT8": "uint_contents", "BYTES": "bytes_contents"}

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


def _rpc(method: Callable[[Any, Request, RequestContext], Awaitable[Response]]) -> Any:
    """Wrap ``async method(self, request, context)`` as a gRPC method of the gateway."""
    empty: type[Response] = get_type_hints(method)["return"]

    @functools.wraps(method)
    async def grpc_method(self: "InferenceService", request: Request, grpc_context: Any) -> Any:
        name = method.__name__
        with called(grpc_context) as headers:
            calls.check(headers)
            async with answering(self.applications, "OpenInference", name, headers) as (context, _):
                return await method(self, request, context)
        return empty()

    del grpc_method.__wrapped__  # Serve reads the signature
    return grpc_method


class InferenceService:
    """The rpcs, for the ingress of the gateway."""

    applications: Applications
    readiness: Readiness

    @_rpc
    async def ServerLive(
        self, request: pb.ServerLiveRequest, context: RequestContext
    ) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    @_rpc
    async def ServerReady(
        self, request: pb.ServerReadyRequest, context: RequestContext
    ) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=await self.readiness.all_ready())

    @_rpc
    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: RequestContext
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name=NAME, version=__version__)

    @_rpc
    async def ModelReady(
        self, request: pb.ModelReadyRequest, context: RequestContext
    ) -> pb.ModelReadyResponse:
        model = models.find(request.name, request.version)
        return pb.ModelReadyResponse(ready=await self.readiness.ready(model.application))

    @_rpc
    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: RequestContext
    ) -> pb.ModelMetadataResponse:
        model = models.find(request.name, request.version)
        return pb.ModelMetadataResponse(**model.metadata(request.name))

    @_rpc
    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: RequestContext
    ) -> pb.ModelInferResponse:
        model = models.find(request.model_name, request.model_version)
        given = await asyncio.to_thread(_read, model, request)
        check_most(len(request.outputs), "{} outputs", MAX_OUTPUTS)
        wanted = [output.name for output in request.outputs]
        found = await model.answer(self.applications, given, wanted, context)
        reply = pb.ModelInferResponse(
            model_name=request.model_name, model_version=models.VERSION, id=request.id
        )

        def fill() -> None:
            for name, array in found.items():
                reply.outputs.add(**described(name, array))
                reply.raw_output_contents.append(array.tobytes())

        await rendered(sum(array.nbytes for array in found.values()), fill)
        return reply


def _read(model: Model, request: pb.ModelInferRequest) -> Tensors:
    """Return the tensors by name. Raises InvalidRequest."""
    check_most(len(request.inputs), "{} inputs", MAX_OUTPUTS)
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequest(f"{len(raw)} raw_input_contents for {len(request.inputs)} inputs")

    def data(index: int) -> Any:
        one = request.inputs[index]
        values = getattr(one.contents, CONTENTS.get(one.datatype, "fp32_contents"))
        return raw[index] if raw else values[: MAX_ELEMENTS + 1]

    return model.read(
        (one.name, one.datatype, one.shape, data(index)) for index, one in enumerate(request.inputs)
    )
