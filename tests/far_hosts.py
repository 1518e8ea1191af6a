"""Hosts of the internet, played by a server of this machine.

Names resolve to public addresses, which the service checks as always; only the connection to a
checked address goes to a port of this machine.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpcore

from services.request.image_urls import PublicNetwork

PUBLIC = "93.184.216.34"
IMAGES = "images.example"
Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]
"""Writes the answer to a request, whose head is given."""


class Dial(httpcore.AnyIOBackend):
    """Connects to a port of this machine in place of a public address."""

    def __init__(self, port: int):
        self.port, self.dialled = port, list[tuple[str, int]]()

    async def connect_tcp(self, host: str, port: int, *rest: Any, **named: Any) -> Any:
        self.dialled.append((host, port))
        return await super().connect_tcp("127.0.0.1", self.port, *rest, **named)


class FarHosts:
    """A server for all hosts: ``network`` leads to it, ``heads`` are the requests that it got."""

    def __init__(self, answer: Answer):
        self.answer, self.port = answer, 0
        self.heads: list[bytes] = []
        self.closed = asyncio.Event()  # a connection was closed by the service

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of a connection until the service closes it."""
        first = b""
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = first + await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                answering = asyncio.create_task(self.answer(head, writer))
                first = await reader.read(1)  # of the next request, or b"" if it is closed
                if not first:
                    answering.cancel()
                    break
                await answering
        self.closed.set()
        writer.close()

    def network(self, names: Mapping[str, Sequence[str]] | None = None) -> PublicNetwork:
        """Return a network in which ``names`` have these addresses; others have PUBLIC."""
        self.resolved: list[str] = []

        def resolve(host: str, port: int) -> Sequence[str]:
            self.resolved.append(host)
            return (names or {}).get(host, [PUBLIC])

        self.dial = Dial(self.port)
        return PublicNetwork(resolve, self.dial)


def file(content: bytes, *headers: str, status: str = "200 OK") -> Answer:
    """Return the answer with a file."""

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", *headers, "", ""]
        writer.write("\r\n".join(lines).encode("latin-1") + content)

    return answer


def redirect(location: str, status: str = "302 Found") -> Answer:
    return file(b"", f"Location: {location}", status=status)


@asynccontextmanager
async def far_hosts(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[FarHosts]:
    """Serve until the end of the block."""
    hosts, connections = FarHosts(answer), list[asyncio.Task[None]]()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.create_task(hosts.serve(reader, writer)))

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    hosts.port = server.sockets[0].getsockname()[1]
    try:
        yield hosts
    finally:
        server.close()
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections)
