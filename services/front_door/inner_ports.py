"""Guard the ports that Serve opens in its proxies and replicas.

Each application asks for the front door's secret, but Serve answers some requests itself and reads
a message before it calls a service. The guard checks the headers before the body is read. Only
Serve's health check passes unchecked: HAProxy sends no secret.
"""

import asyncio
import fcntl
import ipaddress
import socket
import sys
import termios
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import grpc
import ray
from grpc.aio._server import Server
from ray.serve._private import grpc_util
from ray.serve._private.constants import RAY_SERVE_GRPC_MAX_MESSAGE_SIZE
from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy
from starlette.middleware import Middleware
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from samclip_core.errors import Overloaded
from services.request import calls
from services.request.context import KEY
from services.request.http import READER, OnlyThroughFrontDoor
from services.request.transit import MAX_BODIES, REPLIES, Budget, Reserved

HTTP_HEALTH = "/-/healthz"
GRPC_HEALTH = "/ray.serve.RayServeAPIService/Healthz"
IDENTITY_ALONE = ("grpc.compression_enabled_algorithms_bitset", 1)
"""The server refuses compressed messages, which can inflate a thousandfold."""
MESSAGE_BYTES = "x-samclip-message-bytes"
"""Header with the size of a message that had not arrived when the front door passed on the call."""
UNSENT_BYTES = 64 * 1024
"""Bytes of a reply that the kernel keeps for a connection; Linux doubles the number."""
MAX_EVENTS = 2
"""Events of a body that Serve reads ahead of the application: one, and the end of the caller."""

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]]


def guard() -> list[Middleware]:
    """Guard the ports that this process opens from now on; return the middleware for HTTP.

    Serve calls this in each proxy and replica (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH) before
    it opens a port. Serve has no settings for the interceptors, options and address of its gRPC
    servers, nor for the trailers and queues of its HTTP servers, so this function patches them.
    """
    HttpToolsProtocol.on_headers_complete = end_headers  # type: ignore[method-assign, assignment]
    ASGIDIReceiveProxy.queue = property(short_queue)
    grpc_util.gRPCGenericServer = GuardedServer
    Server.add_insecure_port = add_port_of_this_node  # type: ignore[method-assign, assignment]
    return [Middleware(OnlyThroughFrontDoor, unchecked=HTTP_HEALTH)]


# Importing this module raises AttributeError if the installed Ray lacks a name that is patched.
_end_headers, _queue = HttpToolsProtocol.on_headers_complete, ASGIDIReceiveProxy.queue


def end_headers(protocol: HttpToolsProtocol) -> None:
    """Give the application a copy of the headers, without the trailers that may follow the body.

    uvicorn appends trailers to the headers, so a client could set a header that the front door
    deletes, such as the tenant. HAProxy before 3.2 does not delete trailers.

    The scope gets the function that closes the connection: ``close`` of uvicorn's keeps the bytes
    that nobody takes for as long as the connection lives. The kernel keeps few: otherwise it takes
    megabytes at once.
    """
    protocol.scope["headers"] = [*protocol.headers]
    scope: dict[str, Any] = protocol.scope  # type: ignore[assignment]
    transport = protocol.transport
    scope[READER] = transport.abort, partial(_untaken, transport)
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNSENT_BYTES)
    _end_headers(protocol)


def _untaken(transport: asyncio.Transport) -> int:
    """Return the bytes that a caller has not taken, of the transport and of the kernel."""
    in_kernel = bytes(4)
    with suppress(OSError, ValueError):  # a closed connection, and systems that do not tell
        in_kernel = fcntl.ioctl(transport.get_extra_info("socket"), termios.TIOCOUTQ, in_kernel)
    return transport.get_write_buffer_size() + int.from_bytes(in_kernel, sys.byteorder)


def short_queue(proxy: ASGIDIReceiveProxy) -> "asyncio.Queue[Any]":
    """Return the queue of one body. Serve's has no limit, and fills before anybody reads it."""
    if proxy._queue is None:
        proxy._queue = asyncio.Queue(MAX_EVENTS)
    return proxy._queue


class Guard(grpc.aio.ServerInterceptor):
    """Interceptor that refuses calls without the secret, and messages that there is no room for.

    The bytes of a message are held until it is there, and those of a reply until it is sent, or the
    call ends.
    """

    def __init__(self) -> None:
        self.arrivals = Budget("messages", MAX_BODIES * RAY_SERVE_GRPC_MAX_MESSAGE_SIZE)

    async def intercept_service(
        self, continuation: Continuation, call: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler:
        headers: dict[str, Any] = dict(call.invocation_metadata)
        if call.method != GRPC_HEALTH and not calls.admitted(headers):
            return _refusal(grpc.StatusCode.UNAUTHENTICATED, calls.REFUSAL)
        handler = await continuation(call)
        if handler is None:
            return handler
        key = headers.get(KEY, "")
        try:
            if MESSAGE_BYTES in headers:
                handler = _arriving(handler, _until_the_end(self.arrivals, key), headers)
        except Overloaded as error:
            return _refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        serves = handler.response_serializer is None  # not reflection, whose replies are small
        return _replying(handler, _until_the_end(REPLIES, key)) if serves else handler


def _until_the_end(budget: Budget, key: str) -> Reserved:
    """Reserve bytes until the end of this call, which is a task of its own. Raises Overloaded."""
    reserved, call = budget.reserve(key).__enter__(), asyncio.current_task()
    assert call is not None
    call.add_done_callback(lambda _: budget.leave(reserved))
    return reserved


def _arriving(handler: Any, reserved: Reserved, headers: dict[str, Any]) -> grpc.RpcMethodHandler:
    """Hold the bytes of a message until it is there. Raises Overloaded."""
    reserved.hold(int(headers[MESSAGE_BYTES]))

    def read(message: bytes) -> Any:
        reserved.budget.leave(reserved)
        return handler.request_deserializer(message)

    return handler._replace(request_deserializer=read)


def _replying(handler: Any, reserved: Reserved) -> grpc.RpcMethodHandler:
    """Hold the bytes of each reply while gRPC sends it: the message, and gRPC's own copy."""
    call = asyncio.current_task()
    assert call is not None

    def hold(reply: bytes, context: Any) -> bytes:
        try:
            reserved.set(2 * len(reply))
        except Overloaded as error:
            context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
            context.set_details(str(error))
            context.set_trailing_metadata([(calls.ERROR_KIND, Overloaded.__name__)])
            return b""
        reserved.begin_sending(call.cancel)
        return reply

    async def answer_once(asked: Any, context: Any) -> bytes:
        return hold(await handler.unary_unary(asked, context), context)

    async def answer_often(asked: Any, context: Any) -> AsyncIterator[bytes]:
        async for reply in handler.unary_stream(asked, context):
            if not (held := hold(reply, context)) and reply:
                return
            yield held
            reserved.end_sending()

    return handler._replace(unary_unary=answer_once, unary_stream=answer_often)


def _refusal(code: grpc.StatusCode, message: str) -> grpc.RpcMethodHandler:
    async def refuse(messages: object, context: grpc.aio.ServicerContext) -> None:
        await context.abort(code, message)

    # A stream_stream handler reads no message before it runs, and answers calls of every kind.
    return grpc.stream_stream_rpc_method_handler(refuse)


class _WithGuard(Server):
    def __init__(self, **arguments: Any):
        arguments["interceptors"] = (Guard(),)
        arguments["options"] = [*arguments["options"], IDENTITY_ALONE]
        super().__init__(**arguments)


class GuardedServer(grpc_util.gRPCGenericServer, _WithGuard):
    """Serve's gRPC server with the guard.

    ``_WithGuard`` precedes gRPC's server in the MRO, so it receives the arguments that Serve's
    constructor passes on.
    """


_add_insecure_port = Server.add_insecure_port


def add_port_of_this_node(server: Server, address: str) -> int:
    """Listen on the loopback interface only, if Ray runs on a single machine."""
    if ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback:
        address = address.replace("[::]", "127.0.0.1")
    return _add_insecure_port(server, address)
