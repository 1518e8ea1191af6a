"""Addresses of services: gRPC's own, and those of web sites."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import samclip
from samclip.address import grpc_address

from tests.http_server import Handler, serving
from tests.unit.client.conftest import Server


@pytest.mark.parametrize(
    ("given", "address", "tls"),
    [
        ("gpu-1:9000", "gpu-1:9000", False),
        ("http://gpu-1:9000", "gpu-1:9000", False),
        ("https://gpu-1:9443", "gpu-1:9443", True),
        ("http://[::1]:9001", "[::1]:9001", False),
        ("unix:/tmp/socket", "unix:/tmp/socket", False),
        ("unix:///tmp/socket", "unix:///tmp/socket", False),
        ("dns:///gpu-1:9000", "dns:///gpu-1:9000", False),
    ],
)
def test_addresses(given: str, address: str, tls: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samclip.address._grpc_port", lambda site: None)
    assert grpc_address(given) == (address, tls)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:8000", "name the port of gRPC, by default 127.0.0.1:9000"),
        ("https://[::1]", r"by default \[::1\]:9000"),
        ("", "'' is no address of a service: expected HOST:PORT of gRPC, such as 127.0.0.1:9000"),
        ("http://127.0.0.1:99999", "'http://127.0.0.1:99999' is no address of a service: expected"),
        ("http://[::1", "is no address of a service: expected HOST:PORT"),
        ("http://secret@gpu-1:8000", "^the address has a name or a key before @: give a key apart"),
        ("ftp://gpu-1", "'ftp://gpu-1' is no address of a service"),
    ],
)
def test_an_address_without_a_service_is_named(
    address: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samclip.address._grpc_port", lambda site: None)
    for kind in (samclip.Client, samclip.AsyncClient):
        with pytest.raises(ValueError, match=message):
            kind(address)


@contextmanager
def website(content: bytes, status: int = 200) -> Iterator[str]:
    """Answer every GET over HTTP with ``content``; yield the address."""

    class Site(Handler):
        def do_GET(self) -> None:
            self.answer(content, status if self.path == "/playground/service.json" else 404)

    with serving(Site) as address:
        yield address


def test_a_site_that_drips_its_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samclip.address.TIMEOUT_S", 0.2)
    stopped = threading.Event()

    class Dripping(Handler):
        def do_GET(self) -> None:
            while not stopped.wait(0.01):
                self.wfile.write(b".")

    with serving(Dripping) as url:
        try:
            assert grpc_address(url) == (url.removeprefix("http://"), False)
        finally:
            stopped.set()


async def test_the_site_of_a_service_says_which_port_grpc_has(server: Server) -> None:
    port = server[1].rpartition(":")[2]
    with website(b'{"grpc_port": %d}' % int(port)) as url:
        for address in (url, f"{url}/docs"):
            with samclip.Client(address) as client:
                assert client.describe() == []
                assert client.address == server[1]
        async with samclip.AsyncClient(url) as twin:
            assert await twin.describe() == []
    for content, status_ in ((b"no JSON", 200), (b"[]", 200), (b"", 404)):
        with website(content, status_) as url:
            assert grpc_address(url) == (url.removeprefix("http://"), False)
