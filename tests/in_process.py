"""Services behind a gRPC server in this process, without Ray."""

import asyncio
import gc
import inspect
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import grpc
import numpy as np
import pytest
from samclip.rpcs import RPCS
from samclip.v1 import samclip_pb2_grpc as pb_grpc

from services.deployment.ingress import Ingress
from services.request import calls
from services.request.calls import UNLIMITED
from services.request.context import RequestContext
from services.request.routes import of_application
from services.request.rpc import Service, over_grpc, rpcs_of

SECRET = "the front door's secret"
ANYBODY = RequestContext()
ADMITTED = ((calls.SECRET_HEADER, SECRET),)


class Adapter:
    """An adapter of a servicer: gRPC passes the context by position, Serve by name.

    An rpc that the service lacks is not implemented.
    """

    def __init__(self, service: Service):
        self._service = service

    def __getattr__(self, name: str) -> Any:
        service = self._service
        method = getattr(service, name, _missing)
        if isinstance(service, Service) and not isinstance(service, Ingress):
            rpcs = [rpc for rpc in rpcs_of(service) if RPCS[rpc].name == name]
            method = over_grpc(service, rpcs) if rpcs else _missing

        async def stream(request: Any, context: Any) -> Any:
            async for message in method(request, grpc_context=context):
                yield message

        async def call(request: Any, context: Any) -> Any:
            return await method(request, grpc_context=context)

        return stream if inspect.isasyncgenfunction(method) else call


async def _missing(request: Any, grpc_context: Any) -> None:
    await grpc_context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such rpc")


@asynccontextmanager
async def served(*services: Service, port: int = 0) -> AsyncIterator[int]:
    """Serve on ``port`` of the loopback interface (0: any free one), and yield the port."""
    server = grpc.aio.server(options=UNLIMITED)
    for service in services:
        for name in of_application(service.application).services:
            getattr(pb_grpc, f"add_{name}Servicer_to_server")(Adapter(service), server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(None)


class Caller:
    """A client of any rpc of the services at a port, through the public stubs."""

    services: Sequence[Service] = ()

    def __init__(self, port: int, metadata: tuple[tuple[str, str], ...] = ADMITTED):
        self.port = port
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=UNLIMITED)
        self._metadata = metadata

    async def __call__(self, rpc: str, request: Any, timeout: float | None = 60) -> Any:
        return await self._method(rpc)(request, timeout=timeout, metadata=self._metadata)

    def _method(self, rpc: str) -> Any:
        method = RPCS[rpc]
        stub = getattr(pb_grpc, f"{method.containing_service.name}Stub")(self._channel)
        return getattr(stub, method.name)

    def stream(self, rpc: str, request: Any, timeout: float | None = 60) -> Any:
        """Call an rpc that answers with a stream, of a request or of an iterator of messages."""
        return self._method(rpc)(request, timeout=timeout, metadata=self._metadata)

    async def refused(self, rpc: str, request: Any, timeout: float | None = 60) -> tuple[str, str]:
        """Return the code and the details of a call that must fail."""
        try:
            response = await self(rpc, request, timeout)
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or ""
        raise AssertionError(f"{rpc} was answered: {response}")

    async def refuses(self, rpc: str, *bad: tuple[Any, str]) -> None:
        """Assert that each request is invalid, with these words in the error."""
        for request, words in bad:
            code, details = await self.refused(rpc, request)
            assert (code, words in details) == ("INVALID_ARGUMENT", True), (details, words)

    async def close(self) -> None:
        await self._channel.close(None)


async def closed(member: Any) -> None:
    """Stop the tasks of an ingress, close its services, and let go of them as Serve does."""
    for task in (member._swap, member.models._keeper):
        if task is not None:
            task.cancel()
    for model in member.models.loaded():
        await model.service.close()
    member.__del__()


def png(red: int = 100, width: int = 40, height: int = 30, noise: int = 0) -> bytes:
    """Return a PNG file; its bytes differ with ``red`` and ``noise``."""
    image = np.random.default_rng(noise).integers(0, 255, (height, width, 3), np.uint8)
    image[:, :, 2] = red  # OpenCV's order is blue, green, red
    return cv2.imencode(".png", image)[1].tobytes()


MOST_BUSY_S = 0.5
"""CPU time of one callback: Serve waits two seconds for a health check, on slower machines too."""


@dataclass
class Callback:
    """A callback of the event loop, and the CPU time of the loop's thread that it took."""

    seconds: float = 0.0
    text: str = "none"


@contextmanager
def responsive() -> Iterator[None]:
    """Assert that no callback of the event loop takes longer than MOST_BUSY_S.

    Nothing else runs on the loop during a callback. CPU time does not depend on other processes.
    Objects that exist already are frozen, as Serve does in a replica: to collect among those of all
    tests takes up to a second.
    """
    longest, run = Callback(), asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        since = time.thread_time()
        run(handle)
        if (seconds := time.thread_time() - since) > longest.seconds:
            longest.seconds, longest.text = seconds, repr(handle)

    gc.freeze()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio.Handle, "_run", timed)
            yield
    finally:
        gc.unfreeze()
    assert longest.seconds < MOST_BUSY_S, f"the event loop did nothing else in {longest}"
