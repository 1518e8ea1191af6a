"""Clients that cancel, send garbage, are slow, or connect by the thousand, under normal load."""

import asyncio
import random
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress

import grpc
import pytest
from samclip.v1 import samclip_pb2 as pb
from samclip.v1 import samclip_pb2_grpc as rpc

from tests.e2e.conftest import Service
from tests.faults.conftest import Loaded
from tests.faults.load import LABELS, OPTIONS, PATIENT_S, Pictures
from tests.faults.test_processes import FAULTS

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

STORM_S = 4
H2_START = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)  # empty SETTINGS
SLOW_HEAD = b"POST /classify HTTP/1.1\r\nhost: localhost\r\nx-slow: "
SLOW_BODY = (
    b"POST /classify HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    b"content-length: 100000\r\n\r\n{" + b" " * 20_000  # more than the front door buffers
)


@asynccontextmanager
async def callers(
    number: int, service: Service, call: Callable[[rpc.ClassificationServiceStub], Awaitable[str]]
) -> AsyncIterator[Counter[str]]:
    """Run ``number`` callers that call in a loop, and yield the counts of their outcomes."""
    outcomes: Counter[str] = Counter()
    stopped = asyncio.Event()

    async def caller(stub: rpc.ClassificationServiceStub) -> None:
        while not stopped.is_set():
            outcomes[await call(stub)] += 1

    async with grpc.aio.insecure_channel(service.address, OPTIONS) as channel:
        stub = rpc.ClassificationServiceStub(channel)
        tasks = [asyncio.create_task(caller(stub)) for _ in range(number)]
        yield outcomes
        stopped.set()
        await asyncio.gather(*tasks)


async def test_nine_clients_of_ten_give_up(
    loaded: Loaded, service: Service, pictures: Pictures
) -> None:
    """Cancelled requests are not processed, and all others are answered."""
    chance = random.Random(0)

    async def ask(stub: rpc.ClassificationServiceStub) -> str:
        image = pb.Image(encoded=pictures.file(0, fresh=True))
        call = stub.Classify(pb.ClassifyRequest(images=[image], labels=LABELS), timeout=PATIENT_S)
        if chance.random() < 0.9:
            await asyncio.sleep(chance.random() / 10)
            call.cancel()
        try:
            await call
        except asyncio.CancelledError:
            return "cancelled"
        return "answered"

    async with loaded("9 of 10 clients cancel, 30 at once") as load:
        load.attempt_s = PATIENT_S
        load.mark()
        async with callers(30, service, ask) as outcomes:
            await asyncio.sleep(STORM_S)
        load.mark()
    assert outcomes["cancelled"] > 50
    assert outcomes["answered"] > 3
    assert not load.failures(ever=True)


@contextmanager
def connections(
    number: int, port: int, start: bytes = b"", source: str = "127.0.0.1"
) -> Iterator[list[socket.socket]]:
    """Open ``number`` connections that send ``start`` and then stay idle; some may be refused."""
    with ExitStack() as stack:
        opened = []
        for _ in range(number):
            with suppress(ConnectionError):
                connection = socket.create_connection(("127.0.0.1", port), None, (source, 0))
                stack.enter_context(connection).sendall(start)
                opened.append(connection)
        yield opened


@FAULTS
async def test_slow_and_half_open_connections(loaded: Loaded, service: Service) -> None:
    """Some send a header or a body byte by byte, some send nothing, some are reset."""
    async with loaded("900 connections that dawdle, are half open or vanish, for 6 s") as load:
        with (
            connections(200, service.http_port, SLOW_HEAD) as heads,
            connections(300, service.http_port, SLOW_BODY) as bodies,
            connections(100, service.http_port),
            connections(100, service.grpc_port, H2_START),
            connections(100, service.grpc_port),
            connections(100, service.grpc_port, H2_START) as vanishing,
        ):
            for connection in vanishing:  # with SO_LINGER 0, close sends a reset
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()
            for _ in range(12):
                for connection in (*heads, *bodies):
                    with suppress(OSError):
                        connection.send(b"a")
                await asyncio.sleep(0.5)
    assert not load.failures(ever=True)


@FAULTS
async def test_ten_thousand_connections(
    loaded: Loaded, service: Service, pictures: Pictures, descriptors: int
) -> None:
    """A new client is answered while another address opens far more connections than it may."""
    each = min(5000, descriptors // 4 - 200)
    async with loaded(f"{2 * each:,} idle connections of one address") as load:
        with (
            connections(each, service.http_port, source="127.0.0.2"),
            connections(each, service.grpc_port, H2_START, source="127.0.0.2"),
        ):
            async with grpc.aio.insecure_channel(service.address, OPTIONS) as channel:
                image = pb.Image(encoded=pictures.file(0, fresh=True))
                request = pb.ClassifyRequest(images=[image], labels=LABELS)
                await rpc.ClassificationServiceStub(channel).Classify(request, timeout=60)
            await asyncio.sleep(3)
    assert not load.failures(ever=True)
