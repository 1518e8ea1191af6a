"""The ports behind the front door: their interfaces, and their answers without the secret."""

from collections.abc import Callable
from contextlib import suppress

import grpc
import httpx
import psutil
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from ray.serve.generated.serve_pb2 import ListApplicationsRequest
from ray.serve.generated.serve_pb2_grpc import RayServeAPIServiceStub
from samclip.v1 import samclip_pb2 as pb

from tests.e2e.conftest import Service

pytestmark = pytest.mark.e2e

IMAGE = pb.Image(encoded=bytes(100 * 2**20))
"""More than max_image_bytes, less than max_request_bytes."""
MOST_GROWTH = 50 * 2**20
HEALTH = ["/-/healthz", "/api/healthz", "/api/local_raylet_healthz"]
ALIVE = ["success", "raylet: success\ngcs: success"]
PATHS = [
    "/",
    "/-/routes",
    "/metrics",
    "/stats",
    "/stats;csv",
    "/healthz",
    "/gateway/metrics",
    "/gateway/readyz",
    "/classification/healthz",
    "/api/version",
    "/api/job_agent/jobs/",
    "/logs",
]
CALLS: dict[str, Callable[[grpc.Channel], object]] = {
    "ListApplications": lambda channel: RayServeAPIServiceStub(channel).ListApplications(
        ListApplicationsRequest(), timeout=30
    ),
    "reflection": lambda channel: ProtoReflectionDescriptorDatabase(
        channel
    ).FindFileContainingSymbol("samclip.v1.BackboneService"),
    "health": lambda channel: HealthStub(channel).Check(
        HealthCheckRequest(service="samclip.v1.BackboneService"),
        timeout=30,
        metadata=[("application", "gateway")],
    ),
    "Ray's nodes": lambda channel: channel.unary_unary(
        "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo", None, None
    )(b"", timeout=30),
}


def processes(service: Service) -> dict[psutil.Process, str]:
    found = map(psutil.Process, service.processes())
    return {process: " ".join(process.cmdline())[:80] for process in found}


def listeners(service: Service) -> dict[tuple[str, int], str]:
    """Return (address, port) → the command that listens there, over TCP or UDP."""
    found = {}
    for process, command in processes(service).items():
        with suppress(psutil.NoSuchProcess):  # it has ended since
            for socket in process.net_connections("inet"):
                if socket.status in (psutil.CONN_LISTEN, psutil.CONN_NONE):
                    found[socket.laddr.ip, socket.laddr.port] = command
    return found


@pytest.fixture(scope="module")
def http_ports(service: Service) -> dict[int, str]:
    """Return the inner ports that answer HTTP/1.1, with the commands that listen there."""
    return {port: name for port, name in inner_ports(service).items() if speaks_http(port)}


@pytest.fixture(scope="module")
def grpc_ports(service: Service, http_ports: dict[int, str]) -> dict[int, str]:
    """Return all other inner ports, with the commands that listen there."""
    return {port: name for port, name in inner_ports(service).items() if port not in http_ports}


def inner_ports(service: Service) -> dict[int, str]:
    outer = (service.http_port, service.grpc_port)
    return {port: name for (_, port), name in listeners(service).items() if port not in outer}


def speaks_http(port: int) -> bool:
    try:
        httpx.get(f"http://127.0.0.1:{port}/", timeout=30)
    except httpx.HTTPError:
        return False
    return True


def channel_to(port: int) -> grpc.Channel:
    options = [("grpc.max_send_message_length", -1), ("grpc.enable_retries", 0)]
    return grpc.insecure_channel(f"127.0.0.1:{port}", options=options)


def test_only_the_loopback_interface_is_listened_at(service: Service) -> None:
    loopback = ("127.0.0.1", "::ffff:127.0.0.1", "::1")
    found = listeners(service)
    assert not {where: name for where, name in found.items() if where[0] not in loopback}


def test_inner_ports_answer_http_without_the_secret_with_no_more_than_a_sign_of_life(
    http_ports: dict[int, str],
) -> None:
    answers = {}
    with httpx.Client(timeout=30) as client:
        for port, name in http_ports.items():
            for path in (*PATHS, *HEALTH):
                reply = client.get(f"http://127.0.0.1:{port}{path}")
                if reply.is_success and not (path in HEALTH and reply.text in ALIVE):
                    answers[port, path] = name, reply.text[:80]
    assert http_ports
    assert not answers


@pytest.mark.parametrize("call", CALLS)
def test_inner_ports_answer_no_grpc_without_the_secret(
    grpc_ports: dict[int, str], call: str
) -> None:
    answers = {}
    for port, name in grpc_ports.items():
        with channel_to(port) as channel:
            try:
                answers[port] = name, CALLS[call](channel)
            except (grpc.RpcError, KeyError):  # KeyError: reflection does not know our services
                continue
    assert grpc_ports
    assert not answers


def test_a_message_without_the_secret_costs_no_memory(
    service: Service, grpc_ports: dict[int, str]
) -> None:
    ours = ("ServeReplica:classification", "ProxyActor", "haproxy")
    ports = [port for port, name in grpc_ports.items() if any(part in name for part in ours)]
    assert len(ports) >= len(ours)
    request = pb.ClassifyRequest(images=[IMAGE], labels=["a cat"]).SerializeToString()
    before = {process: process.memory_info().rss for process in processes(service)}
    for port in ports:
        with channel_to(port) as channel:
            call = channel.unary_unary("/samclip.v1.ClassificationService/Classify", None, None)
            with pytest.raises(grpc.RpcError) as caught:
                call(request, 120, [("application", "classification")])
        # A service would have read it.
        assert caught.value.code() is not grpc.StatusCode.INVALID_ARGUMENT
    grown = {
        name: process.memory_info().rss - before[process]
        for process, name in processes(service).items()
        if process in before
    }
    assert max(grown.values()) < MOST_GROWTH, grown
