"""Replies that nobody reads, from real servers over real sockets: they are counted, and cut."""

import asyncio
import gc
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import grpc
import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message as Event
from starlette.types import Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.batching.priority import Priority
from services.front_door import inner_ports
from services.request import http, transit
from services.request.calls import SECRET_HEADER, SECRET_VARIABLE
from services.request.context import RequestContext, time_limit
from services.request.limits import Reply
from services.request.transit import REPLIES, Pace
from tests import http2
from tests.ports import free_port

SIZE = 40 * 2**20
"""Bytes of a reply: more than the kernel takes for a reader that takes nothing."""
SECRET = "of the front door"
PATIENT = Pace(most_s=1e6, head_start_s=1e6)


@pytest.fixture(autouse=True)
def guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, SECRET)
    monkeypatch.setattr(HttpToolsProtocol, "on_headers_complete", inner_ports.end_headers)


class Body(bytes):
    """A reply whose life can be watched."""

    alive = 0

    def __new__(cls, size: int) -> "Body":
        cls.alive += 1
        return super().__new__(cls, size)

    def __del__(self) -> None:
        Body.alive -= 1


class Raw(Response):
    def render(self, content: Any) -> Any:
        return content


@asynccontextmanager
async def over_http(timeout_s: float, sent: list[int] | None = None) -> AsyncIterator[int]:
    """Serve replies of SIZE bytes with a deadline to callers with all time; yield the port.

    ``sent`` gets the bytes of each piece that the kernel has taken.
    """

    async def handle(request: Request, headers: object, send: Send) -> None:
        async def noted(event: Event) -> None:
            await send(event)
            if sent is not None:
                sent.append(len(event.get("body", b"")))

        context = RequestContext(priority=Priority(monotonic() + timeout_s), reply=Reply())
        with context.reply.reserved as place:
            async with time_limit(context):
                await http.sent(Raw(Body(SIZE)), place, request, noted, PATIENT)

    endpoint = http.Endpoint(handle, http.problem)
    port = free_port()
    config = uvicorn.Config(
        endpoint, port=port, log_level="critical", http="httptools", lifespan="off"
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield port
    finally:
        server.should_exit = True
        await serving


async def connected(port: int) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    return connection


async def ask(port: int, method: str = "GET", times: int = 1) -> socket.socket:
    connection = await connected(port)
    head = f"{method} / HTTP/1.1\r\nhost: a\r\n\r\n".encode()
    await asyncio.get_running_loop().sock_sendall(connection, head * times)
    return connection


async def rest(connection: socket.socket) -> int:
    """Return how many bytes can be read before the connection ends."""
    received = 0
    try:
        while piece := await asyncio.get_running_loop().sock_recv(connection, 2**20):
            received += len(piece)
    except ConnectionResetError:
        pass
    connection.close()
    return received


async def until(true: Any) -> None:
    async with asyncio.timeout(15):
        while not true():
            await asyncio.sleep(0.02)


def nothing_is_held() -> bool:
    if REPLIES.bytes == 0:
        gc.collect()
    return REPLIES.bytes == 0 and not Body.alive


async def test_a_reply_that_nobody_reads_is_held_until_its_deadline_and_no_longer() -> None:
    """The kernel keeps little of it: otherwise a slow reader takes megabytes without a sign."""
    sent = list[int]()
    async with over_http(timeout_s=2, sent=sent) as port:
        connections = [await ask(port) for _ in range(3)]
        await until(lambda: REPLIES.bytes == 3 * SIZE)
        await until(nothing_is_held)  # though all connections are open at this end
        assert 0 < sum(sent) < 3 * 2**20
        assert [await rest(connection) < SIZE for connection in connections] == [True] * 3


async def test_a_reader_gets_all_bytes_and_may_ask_again_on_the_same_connection() -> None:
    async with over_http(timeout_s=60) as port:
        connection = await ask(port, times=2)  # pipelined: the second one waits for the first
        await until(lambda: REPLIES.bytes == SIZE)
        loop, received = asyncio.get_running_loop(), 0
        while received < 2 * SIZE:
            received += len(await loop.sock_recv(connection, 2**20))
            assert REPLIES.bytes <= SIZE
        await until(nothing_is_held)
        connection.close()


async def test_an_unread_reply_makes_room_for_one_that_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(REPLIES, "most_bytes", SIZE)
    monkeypatch.setattr(transit, "GRACE_S", 1e6)
    async with over_http(timeout_s=60) as port:
        unread = await ask(port)
        await until(lambda: REPLIES.bytes == SIZE)
        at_once = await ask(port)
        assert b" 429 " in await asyncio.get_running_loop().sock_recv(at_once, 1000)
        monkeypatch.setattr(transit, "GRACE_S", 0)
        assert await rest(await ask_to_close(port)) > SIZE
        assert await rest(unread) < SIZE
        at_once.close()


async def test_a_slow_reader_that_takes_bytes_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time far fewer than the server sends at once, and almost as seldom as is allowed."""
    now, loop = [monotonic()], asyncio.get_running_loop()
    monkeypatch.setattr(REPLIES, "most_bytes", SIZE)
    monkeypatch.setattr(transit, "monotonic", lambda: now[0])
    monkeypatch.setattr(transit, "LOOK_S", 0.01)
    async with over_http(timeout_s=60) as port:
        slow = await ask(port)
        await until(lambda: REPLIES.bytes == SIZE)
        for _ in range(5):
            await asyncio.sleep(0.2)  # the server looks
            now[0] += transit.GRACE_S - 1
            at_once = await ask(port)
            assert b" 429 " in await loop.sock_recv(at_once, 1000)
            at_once.close()
            taken = 0
            while taken < 20_000:
                taken += len(await loop.sock_recv(slow, 4096))
        slow.close()


async def ask_to_close(port: int) -> socket.socket:
    connection = await connected(port)
    head = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
    await asyncio.get_running_loop().sock_sendall(connection, head)
    return connection


CALL = "/test.Service/Answer"


@asynccontextmanager
async def over_grpc(streams: bool = False, pause_s: float = 0) -> AsyncIterator[int]:
    """Serve replies of SIZE bytes, in a stream without an end; yield the port."""

    async def one(asked: bytes, context: object) -> bytes:
        return bytes(SIZE)

    async def many(asked: bytes, context: object) -> AsyncIterator[bytes]:
        while True:
            yield bytes(SIZE)
            await asyncio.sleep(pause_s)

    handler = (
        grpc.unary_stream_rpc_method_handler(many)
        if streams
        else grpc.unary_unary_rpc_method_handler(one)
    )
    service = grpc.method_handlers_generic_handler("test.Service", {"Answer": handler})
    server = grpc.aio.server(
        handlers=[service],
        interceptors=[inner_ports.Guard()],
        options=[("grpc.max_send_message_length", -1)],
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def call(port: int, *more: tuple[str, str]) -> socket.socket:
    """Begin a call that takes no byte of its reply but those of the first window."""
    connection = await connected(port)
    start = http2.call(CALL, (SECRET_HEADER, SECRET), *more) + http2.message(0, 0)
    await asyncio.get_running_loop().sock_sendall(connection, start)
    return connection


@pytest.mark.parametrize("streams", [False, True])
async def test_a_reply_over_grpc_is_held_until_the_deadline_of_the_call(streams: bool) -> None:
    async with over_grpc(streams) as port:
        connections = [await call(port, ("grpc-timeout", "2S")) for _ in range(3)]
        await until(lambda: REPLIES.bytes == 3 * 2 * SIZE)
        await until(nothing_is_held)
        for connection in connections:
            connection.close()


async def test_a_stream_that_makes_its_next_reply_is_not_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(REPLIES, "most_bytes", 2 * SIZE)
    monkeypatch.setattr(transit, "GRACE_S", 0.2)
    options = [("grpc.max_receive_message_length", -1)]
    async with (
        over_grpc(streams=True, pause_s=5) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel,
    ):
        answers = channel.unary_stream(CALL)
        first = answers(b"", metadata=((SECRET_HEADER, SECRET),))
        assert len(await first.read()) == SIZE
        await asyncio.sleep(0.3)
        second = answers(b"", metadata=((SECRET_HEADER, SECRET),))
        assert len(await second.read()) == SIZE
        assert REPLIES.number == 2
        first.cancel()
        second.cancel()


async def test_an_unread_reply_over_grpc_makes_room_for_one_that_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(REPLIES, "most_bytes", 2 * SIZE)
    monkeypatch.setattr(transit, "GRACE_S", 1e6)
    async with over_grpc() as port:
        unread = await call(port)
        await until(lambda: REPLIES.bytes == 2 * SIZE)
        options = [("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            answer = channel.unary_unary(CALL)
            with pytest.raises(grpc.aio.AioRpcError, match="replies in progress hold"):
                await answer(b"", metadata=((SECRET_HEADER, SECRET),))
            monkeypatch.setattr(transit, "GRACE_S", 0)
            assert len(await answer(b"", metadata=((SECRET_HEADER, SECRET),))) == SIZE
        await until(nothing_is_held)
        unread.close()
