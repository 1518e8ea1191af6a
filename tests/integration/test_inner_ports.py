"""The guard of the servers that Serve starts in its proxies and replicas."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import psutil
import pytest
import ray
import uvicorn
from grpc.aio._server import Server
from ray.serve._private import grpc_util
from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy
from ray.serve.config import gRPCOptions
from ray.serve.generated.serve_pb2 import HealthzRequest, ListApplicationsRequest
from ray.serve.generated.serve_pb2_grpc import RayServeAPIServiceStub
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.front_door import inner_ports
from services.request.calls import SECRET_HEADER
from services.request.context import KEY
from tests.in_process import SECRET
from tests.ports import free_port

EMBED = "/samclip.v1.BackboneService/Embed"
ADMITTED = ((SECRET_HEADER, SECRET),)


def answers(service_method: str, streaming_type: object) -> Callable[..., Awaitable[bytes]]:
    async def answer(request: bytes, context: object) -> bytes:
        return b""

    return answer


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch, settings: object) -> None:
    """Guard the ports that a test opens, and no others."""
    for owner, name in (
        (HttpToolsProtocol, "on_headers_complete"),
        (grpc_util, "gRPCGenericServer"),
        (Server, "add_insecure_port"),
        (ASGIDIReceiveProxy, "queue"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    inner_ports.guard()


@pytest.fixture
async def channel_at(
    monkeypatch: pytest.MonkeyPatch, patched: None
) -> AsyncIterator[Callable[[str], Awaitable[tuple[grpc.aio.Channel, str]]]]:
    """Return a function that starts Serve's server; it returns a channel and the bind address."""
    monkeypatch.setattr(inner_ports, "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE", 1000)
    opened: list[Any] = []

    async def start(node: str) -> tuple[grpc.aio.Channel, str]:
        monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: node)
        options = gRPCOptions(
            port=free_port(),
            grpc_servicer_functions=[
                "samclip.v1.samclip_pb2_grpc.add_BackboneServiceServicer_to_server"
            ],
        )
        loop = asyncio.get_running_loop()
        task, server = await grpc_util.start_grpc_server(answers, options, event_loop=loop)
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{options.port}")
        opened.append((task, server, channel))
        (where,) = {
            socket.laddr.ip
            for socket in psutil.Process().net_connections()
            if socket.status == psutil.CONN_LISTEN and socket.laddr.port == options.port
        }
        return channel, where

    yield start
    for task, server, channel in opened:
        await channel.close()
        await server.stop(None)
        await task


@pytest.fixture
async def channel(channel_at: Any) -> grpc.aio.Channel:
    opened, _ = await channel_at("127.0.0.1")
    return opened


async def refusal(call: Awaitable[object]) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    code: grpc.StatusCode = caught.value.code()
    return code


async def test_grpc_is_answered_with_the_secret_alone(channel: grpc.aio.Channel) -> None:
    embed = channel.unary_unary(EMBED)
    assert await embed(b"", metadata=ADMITTED) == b""
    for metadata in ((), ((SECRET_HEADER, "guessed"),)):
        assert await refusal(embed(b"", metadata=metadata)) is grpc.StatusCode.UNAUTHENTICATED


async def test_of_serves_own_calls_its_health_check_alone_needs_no_secret(
    channel: grpc.aio.Channel,
) -> None:
    stub = RayServeAPIServiceStub(channel)
    await stub.Healthz(HealthzRequest())
    await stub.ListApplications(ListApplicationsRequest(), metadata=ADMITTED)
    applications = stub.ListApplications(ListApplicationsRequest())
    assert await refusal(applications) is grpc.StatusCode.UNAUTHENTICATED
    reflection = channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    )
    call = reflection(iter([b""]))
    assert await refusal(call.read()) is grpc.StatusCode.UNAUTHENTICATED


def announced(size: int, key: str = "") -> tuple[tuple[str, str], ...]:
    return (*ADMITTED, (KEY, key), (inner_ports.MESSAGE_BYTES, str(size)))


async def outcome(channel: grpc.aio.Channel, size: int, key: str = "") -> str:
    try:
        await channel.unary_unary(EMBED)(b"", metadata=announced(size, key))
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def unfinished(
    channel: grpc.aio.Channel, size: int, another: int, key: str = ""
) -> grpc.aio.StreamUnaryCall:
    """Return a call whose message never arrives, once there is no room for ``another`` message."""
    call = channel.stream_unary(EMBED)(metadata=announced(size, key))
    while (code := await outcome(channel, another, key)) == "OK":
        if call.done():  # the other was there first
            call = channel.stream_unary(EMBED)(metadata=announced(size, key))
        await asyncio.sleep(0.01)
    assert code == "RESOURCE_EXHAUSTED"
    return call


async def test_a_message_that_there_is_no_room_for_is_refused_before_it_arrives(
    channel: grpc.aio.Channel,
) -> None:
    most = inner_ports.MAX_BODIES * 1000
    call = await unfinished(channel, most, another=1)
    call.cancel()
    while await outcome(channel, most) != "OK":
        await asyncio.sleep(0.01)
    assert await outcome(channel, most) == "OK"  # the place of a message that has arrived is free


async def test_messages_of_one_key_that_never_arrive_leave_room_for_others(
    channel: grpc.aio.Channel,
) -> None:
    call = await unfinished(channel, 1000, another=1000, key="ann")
    assert await outcome(channel, 1000, "bob") == "OK"
    call.cancel()


async def test_serve_reads_no_body_that_nobody_asks_for(channel: grpc.aio.Channel) -> None:
    events = 0

    async def receive() -> dict[str, Any]:
        nonlocal events
        events += 1
        return {"type": "http.request", "body": bytes(100), "more_body": True}

    proxy = ASGIDIReceiveProxy({"type": "http"}, receive, asyncio.get_running_loop())
    reading = proxy.fetch_until_disconnect_task()
    for _ in range(100):
        await asyncio.sleep(0)
    assert events == inner_ports.MAX_EVENTS + 1
    await proxy()
    for _ in range(100):
        await asyncio.sleep(0)
    assert events == inner_ports.MAX_EVENTS + 2
    reading.cancel()


@pytest.mark.parametrize("algorithm", ["Gzip", "Deflate"])
async def test_a_compressed_message_is_refused(channel: grpc.aio.Channel, algorithm: str) -> None:
    compression = grpc.Compression[algorithm]
    call = channel.unary_unary(EMBED)(bytes(1000), metadata=ADMITTED, compression=compression)
    assert await refusal(call) is grpc.StatusCode.UNIMPLEMENTED


async def test_a_node_alone_listens_at_the_loopback_interface(channel_at: Any) -> None:
    _, where = await channel_at("127.0.0.1")
    assert where in ("127.0.0.1", "::ffff:127.0.0.1")
    _, where = await channel_at("10.0.0.1")
    assert where == "::"


async def names_of_headers(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive)
    await request.body()
    await PlainTextResponse(" ".join(request.headers.keys()))(scope, receive, send)


async def test_a_trailer_is_no_header(patched: None) -> None:
    port = free_port()
    config = uvicorn.Config(names_of_headers, port=port, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx-samclip-tenant: ann\r\n\r\n"
    )
    reply = await reader.read()
    writer.close()
    server.should_exit = True
    await serving
    assert reply.startswith(b"HTTP/1.1 200")
    assert reply.endswith(b"host connection transfer-encoding")
