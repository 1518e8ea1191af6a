"""Callers of the real service that hang up, are slow, or stay connected."""

import base64
import itertools
import json
import secrets
import socket
import time
from collections.abc import Callable, Iterator

import grpc
import httpx
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from prometheus_client.parser import text_string_to_metric_families
from samclip.v1 import samclip_pb2 as pb
from samclip.v1 import samclip_pb2_grpc as rpc

from services.front_door.haproxy import BUFFER_BYTES
from services.gateway.app import MAX_WATCHERS
from tests.e2e.conftest import Service
from tests.in_process import png

pytestmark = pytest.mark.e2e

IMAGES = 256
PATIENCE_S = 300  # for a busy machine


def metric(http: httpx.Client, name: str, **labels: str) -> float:
    text = http.get("/metrics").text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def number() -> Iterator[int]:
    """Return seeds of images that no cache holds."""
    return itertools.count(secrets.randbits(32))


def post(service: Service, path: str, body: bytes, length: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", service.http_port))
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    connection.sendall(f"{head}content-length: {length}\r\n\r\n".encode() + body)
    return connection


@pytest.mark.parametrize("protocol", ["gRPC", "HTTP"])
def test_work_for_callers_who_hang_up_is_given_up(
    service: Service,
    channel: grpc.Channel,
    http: httpx.Client,
    number: Iterator[int],
    protocol: str,
) -> None:
    def encoded() -> float:
        return metric(http, "samclip_batch_size_sum")

    def cancelled() -> float:
        return metric(http, "samclip_requests_total", rpc="Index", code="CANCELLED")

    def inflight() -> float:
        return metric(http, "samclip_inflight")

    items = [
        pb.IndexItem(id=str(i), image=pb.Image(encoded=png(9, 40, 30, noise=next(number))))
        for i in range(IMAGES)
    ]
    wait_until(lambda: not inflight())
    before, gone = encoded(), cancelled()
    if protocol == "gRPC":
        request = pb.IndexRequest(collection="left", items=items)
        call = rpc.RetrievalServiceStub(channel).Index.future(request)
        wait_until(lambda: encoded() > before)
        call.cancel()
    else:
        named = [
            {"id": item.id, "image": base64.b64encode(item.image.encoded).decode()}
            for item in items
        ]
        body = json.dumps({"collection": "left", "items": named}).encode()
        connection = post(service, "/index", body, len(body))
        wait_until(lambda: encoded() > before)
        connection.close()
    wait_until(lambda: not inflight())
    assert cancelled() == gone + 1
    assert encoded() - before < IMAGES


def test_a_body_that_is_too_slow_is_408(service: Service, http: httpx.Client) -> None:
    """A body larger than the front door's buffer reaches the application, which times out."""

    def refused() -> float:
        code = "DEADLINE_EXCEEDED"
        return metric(http, "samclip_requests_total", rpc="Classify", code=code)

    before = refused()
    with post(service, "/classify", b"{" + b" " * (BUFFER_BYTES + 4000), 300_000) as connection:
        connection.settimeout(PATIENCE_S)
        answer = b"".join(iter(lambda: connection.recv(10_000), b"")).decode()
    assert answer.split()[1] == "408"
    assert "content-type: application/problem+json" in answer
    assert f"the body is too slow: {BUFFER_BYTES + 4001:,} bytes arrived" in answer
    assert refused() == before + 1


def test_watchers_take_nothing_from_others(channel: grpc.Channel, http: httpx.Client) -> None:
    health = HealthStub(channel)
    watching = [health.Watch(HealthCheckRequest()) for _ in range(MAX_WATCHERS + 6)]
    try:
        answered = [_first(call) for call in watching]
        assert answered.count("SERVING") == MAX_WATCHERS
        assert answered.count("RESOURCE_EXHAUSTED") == 6
        assert health.Check(HealthCheckRequest(), timeout=60).status == HealthCheckResponse.SERVING
        assert http.get("/readyz").is_success
    finally:
        for call in watching:
            call.cancel()


def _first(call: "grpc.CallIterator[HealthCheckResponse]") -> str:
    try:
        return HealthCheckResponse.ServingStatus.Name(next(call).status)
    except grpc.RpcError as error:
        return str(error.code().name)


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz"])
def test_head_is_answered_without_a_body(http: httpx.Client, path: str) -> None:
    head = http.head(path)
    assert (head.status_code, head.content) == (200, b"")


def test_a_page_of_another_site_learns_nothing_of_collections(http: httpx.Client) -> None:
    reply = http.post("/describe", json={}, headers={"host": "evil.example:8000"})
    assert (reply.status_code, reply.json()["status"]) == (421, 421)
    assert http.get("/metrics", headers={"host": "samclip:8000"}).is_success
