"""Ports, routing, health, reflection and cancellation of the real service."""

import base64
import json
import socket
import time
from collections.abc import Callable, Iterator

import grpc
import httpx
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from prometheus_client.parser import text_string_to_metric_families
from samclip.v1 import samclip_pb2 as pb
from samclip.v1 import samclip_pb2_grpc as rpc

from services.request.routes import ROUTES, SERVICES
from tests.e2e.conftest import Service
from tests.in_process import png

pytestmark = pytest.mark.e2e
LABELS = ["a cat", "a dog"]
IMAGES = 128
PATIENCE_S = 300  # for a busy machine


def test_health_of_the_whole_and_of_each_service(channel: grpc.Channel, http: httpx.Client) -> None:
    stub = HealthStub(channel)
    for service in ("", *SERVICES):
        answer = stub.Check(HealthCheckRequest(service=service))
        assert answer.status == HealthCheckResponse.SERVING
    watch = stub.Watch(HealthCheckRequest())
    assert next(watch).status == HealthCheckResponse.SERVING
    watch.cancel()
    with pytest.raises(grpc.RpcError) as unknown:
        stub.Check(HealthCheckRequest(service="other"))
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    report = http.get("/readyz").json()
    assert report["ready"] is True
    assert set(report["services"]) == set(ROUTES)


def test_reflection_lists_and_describes_the_services(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert {*SERVICES, "grpc.health.v1.Health"} <= set(database.get_services())
    file = database.FindFileContainingSymbol("samclip.v1.BackboneService")
    assert file.package == "samclip.v1"


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


@pytest.mark.parametrize("protocol", ["gRPC", "HTTP"])
def test_work_for_callers_who_hang_up_is_given_up(
    service: Service,
    channel: grpc.Channel,
    http: httpx.Client,
    number: Iterator[int],
    protocol: str,
) -> None:
    def encoded() -> float:
        return metric(http, "samclip_batch_size_sum", part="image_encoder")

    def cancelled() -> float:
        return metric(http, "samclip_requests_total", rpc="Index", code="CANCELLED")

    def inflight() -> float:
        return metric(http, "samclip_inflight")

    images = [png(9, 40, 30, noise=next(number)) for _ in range(IMAGES)]
    wait_until(lambda: not inflight())
    before, gone = encoded(), cancelled()
    if protocol == "gRPC":
        items = [
            pb.IndexItem(id=str(i), image=pb.Image(encoded=image)) for i, image in enumerate(images)
        ]
        request = pb.IndexRequest(collection="left", items=items)
        call = rpc.RetrievalServiceStub(channel).Index.future(request)
        wait_until(lambda: encoded() > before)
        call.cancel()
    else:
        named = [
            {"id": str(i), "image": base64.b64encode(image).decode()}
            for i, image in enumerate(images)
        ]
        body = json.dumps({"collection": "left", "items": named}).encode()
        head = "POST /index HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", service.http_port)) as connection:
            connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            wait_until(lambda: encoded() > before)
    wait_until(lambda: not inflight())
    assert cancelled() == gone + 1
    assert encoded() - before < IMAGES
