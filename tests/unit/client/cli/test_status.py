"""``samclip status``, and the addresses of services."""

import json
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from samclip import __version__, cli
from samclip.cli import service
from samclip.v1 import samclip_pb2 as pb
from samclip.v1 import samclip_pb2_grpc as pb_grpc

from tests.fake_server import FakeService
from tests.http_server import Handler, serving
from tests.unit.client.conftest import Captured, Server


class Health(health_pb2_grpc.HealthServicer):
    """Everything is ready except the services in ``broken``; those in ``missing`` are unknown."""

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.missing: set[str] = set()

    def Check(self, request: Any, context: Any) -> Any:
        context.set_trailing_metadata([(service.VERSION, "9.9.9")])
        name = request.service.removeprefix("samclip.v1.")
        if name in self.missing:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        status = "NOT_SERVING" if name in self.broken else "SERVING"
        return health_pb2.HealthCheckResponse(status=status)


@pytest.fixture
def running() -> Iterator[tuple[Health, str]]:
    health = Health()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    pb_grpc.add_BackboneServiceServicer_to_server(FakeService(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield health, f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_status_names_versions_parts_and_model(
    running: tuple[Health, str], capsys: Captured
) -> None:
    health, address = running
    assert cli.main(["status", "--server", address, "--json"]) == 0
    rows = {row["what"]: row["state"] for row in json.loads(capsys.readouterr().out)["results"]}
    parts = dict.fromkeys(pb.DESCRIPTOR.services_by_name, "ready")
    expected = {"client": __version__, "service": "9.9.9", **parts, "model": "fake int8 d1935"}
    assert rows == expected
    health.broken.add("RetrievalService")
    assert cli.main(["status", "--server", address]) == 1
    assert "RetrievalService             not ready" in capsys.readouterr().out
    health.broken, health.missing = set(), {"RetrievalService"}
    assert cli.main(["status", "--server", address]) == 1
    assert "not served here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "address", "tls"),
    [
        ("gpu-1:9000", "gpu-1:9000", False),
        ("http://gpu-1:9000", "gpu-1:9000", False),
        ("https://gpu-1:9443", "gpu-1:9443", True),
        ("http://[::1]:9001", "[::1]:9001", False),
        ("unix:/tmp/socket", "unix:/tmp/socket", False),
    ],
)
def test_addresses_with_a_scheme_work(given: str, address: str, tls: bool) -> None:
    assert service.grpc_address(given) == (address, tls)


@pytest.mark.parametrize(
    "given", ["http://127.0.0.1:8000", "https://127.0.0.1", "http://127.0.0.1:8000/docs"]
)
def test_addresses_for_browsers_are_answered_with_the_port_to_use(
    given: str, capsys: Captured
) -> None:
    assert cli.main(["describe", "--server", given]) == 2
    assert "--server 127.0.0.1:9000" in capsys.readouterr().err


@contextmanager
def website(content: bytes, status: int = 200) -> Iterator[str]:
    """Answer every GET over HTTP with ``content``; yield the address."""

    class Site(Handler):
        def do_GET(self) -> None:
            self.answer(content, status if self.path == "/playground/service.json" else 404)

    with serving(Site) as address:
        yield address


def test_the_site_of_a_service_says_which_port_grpc_has(server: Server, capsys: Captured) -> None:
    port = server[1].rpartition(":")[2]
    with website(b'{"grpc_port": %d}' % int(port)) as url:
        assert cli.main(["describe", "--server", url]) == 0
        assert cli.main(["describe", "--server", f"{url}/docs"]) == 0
    for content, status_ in ((b"no JSON", 200), (b"[]", 200), (b"", 404)):
        with website(content, status_) as url:
            assert service.grpc_address(url) == (url.removeprefix("http://"), False)


def test_a_web_server_is_not_asked_again_and_the_port_of_grpc_is_named(
    photo: str, capsys: Captured
) -> None:
    with website(b"") as url:
        service = ["--server", url.removeprefix("http://"), "--timeout", "5"]
        assert cli.main(["classify", photo, "--labels", "cat", *service]) == 1
    assert "--server takes its gRPC address, port 9000 by default" in capsys.readouterr().err


def test_the_environment_names_service_and_key(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("SAMCLIP_SERVER", server[1])
    monkeypatch.setenv("SAMCLIP_API_KEY", "a key")
    assert cli.main(["describe"]) == 0
    assert server[0].calls[-1][1]["authorization"] == "Bearer a key"
