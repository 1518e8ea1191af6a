"""``samclip status``, and the service that a command asks."""

import json
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from samclip import __version__, cli
from samclip.cli import service
from samclip.v1 import samclip_pb2 as pb
from samclip.v1 import samclip_pb2_grpc as pb_grpc

from tests.fake_server import HEADS, FakeService
from tests.unit.client.conftest import Captured, Server
from tests.unit.client.test_address import website


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
    pb_grpc.add_CustomHeadServiceServicer_to_server(FakeService(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield health, f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_status_names_versions_parts_and_model(
    running: tuple[Health, str], capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    health, address = running
    assert cli.main(["status", "--server", address, "--json"]) == 1
    rows = {row["what"]: row["state"] for row in json.loads(capsys.readouterr().out)["results"]}
    parts = dict.fromkeys(pb.DESCRIPTOR.services_by_name, "ready")
    expected = {"client": __version__, "service": "9.9.9", **parts, "model": "fake int8 d1935"}
    expected |= {
        "model fake": "loaded, default, 250 MB",
        "model clip": "idle, without masks",
        "model today": "loaded, another name of fake",
        "head echo": "What it was given. (at_least)",
        "head torn": "failed: weights.bin is cut off",
    }
    assert rows == expected
    monkeypatch.setattr("tests.fake_server.HEADS", HEADS[:1])
    assert cli.main(["status", "--server", address]) == 0
    health.broken.add("RetrievalService")
    assert cli.main(["status", "--server", address]) == 1
    assert "RetrievalService             not ready" in capsys.readouterr().out
    health.broken, health.missing = set(), {"RetrievalService"}
    assert cli.main(["status", "--server", address]) == 1
    assert "not served here" in capsys.readouterr().out


def test_status_names_a_model_that_cannot_be_loaded(
    running: tuple[Health, str], capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    torn = pb.ServedModel(name="torn", state="failed", reason="model.safetensors is cut off")
    monkeypatch.setattr("tests.fake_server.HEADS", [])
    for models, status in (([], 0), ([torn], 1)):
        monkeypatch.setattr("tests.fake_server.SERVED", models)
        assert cli.main(["status", "--server", running[1]]) == status
    assert "failed: model.safetensors is cut off" in capsys.readouterr().out


@pytest.fixture
def older(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let services that start later list neither models nor heads."""

    def refuse(service: Any, request: Any, context: Any) -> None:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

    for rpc in ("ListModels", "ListHeads"):
        monkeypatch.setattr(FakeService, rpc, refuse)


def test_an_older_service_lists_no_models_and_no_heads(
    older: None, running: tuple[Health, str], capsys: Captured
) -> None:
    assert cli.main(["status", "--server", running[1]]) == 0
    assert "loaded" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "given", ["http://127.0.0.1:8000", "https://127.0.0.1", "http://127.0.0.1:8000/docs"]
)
def test_addresses_for_browsers_are_answered_with_the_port_to_use(
    given: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samclip.address._grpc_port", lambda site: None)
    assert cli.main(["describe", "--server", given]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"samclip: --server: {given} does not say which port gRPC has")
    assert "samclip serve" in error
    assert error.endswith("by default 127.0.0.1:9000\n")


def test_a_web_server_is_not_asked_again_and_the_port_of_grpc_is_named(
    photo: str, capsys: Captured
) -> None:
    with website(b"") as url:
        service = ["--server", url.removeprefix("http://"), "--timeout", "5"]
        assert cli.main(["classify", photo, "--labels", "cat", *service]) == 1
    assert "a web server answers at this address" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ({}, "127.0.0.1:9000"),
        ({"GRPC_PORT": "9001"}, "127.0.0.1:9001"),
        ({"HOST": "0.0.0.0", "GRPC_PORT": "9001"}, "127.0.0.1:9001"),
        ({"HOST": "::"}, "[::1]:9000"),
        ({"HOST": "fd00::5"}, "[fd00::5]:9000"),
        ({"HOST": "gpu-1", "SERVER": ""}, "gpu-1:9000"),
        ({"HOST": "gpu-1", "SERVER": "gpu-2:9"}, "gpu-2:9"),
    ],
)
def test_the_settings_of_a_service_say_where_it_is(
    settings: dict[str, str], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOST", "GRPC_PORT", "SERVER"):
        monkeypatch.delenv(f"SAMCLIP_{name}", raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(f"SAMCLIP_{name}", value)
    assert service.server() == address


def test_the_environment_names_service_and_key(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("SAMCLIP_SERVER", server[1])
    monkeypatch.setenv("SAMCLIP_API_KEY", "a key")
    assert cli.main(["describe"]) == 0
    assert server[0].calls[-1][1]["authorization"] == "Bearer a key"
