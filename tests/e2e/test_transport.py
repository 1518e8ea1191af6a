"""Ports, routing, health, reflection, errors, admission and metrics of the real service."""

import base64
import json
import secrets
from collections.abc import Callable
from http.client import HTTPConnection

import grpc
import httpx
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from samclip.v1 import samclip_pb2 as pb
from samclip.v1 import samclip_pb2_grpc as rpc

from samclip_core.io.image import image_key
from services.request.calls import SECRET_HEADER
from services.request.context import IMAGE_KEY
from services.request.routes import ROUTES, SERVICES
from tests.e2e.conftest import Service
from tests.in_process import png

pytestmark = pytest.mark.e2e
LABELS = ["a cat", "a dog"]


def failure(call: Callable[[], object]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


def test_plain_stubs_and_http_give_the_same_answer(
    channel: grpc.Channel, http: httpx.Client, photo: bytes
) -> None:
    request = pb.ClassifyRequest(images=[pb.Image(encoded=photo)], labels=LABELS)
    answer = rpc.ClassificationServiceStub(channel).Classify(request)
    (result,) = answer.results
    expected = [(score.label, pytest.approx(score.score, abs=1e-5)) for score in result.scores]
    form = http.post("/classify", files={"image": photo}, data={"labels": LABELS}).json()
    image = base64.b64encode(photo).decode()
    body = http.post("/classify", json={"image": image, "labels": LABELS}).json()
    for reply in (form, body):
        assert [(score["label"], score["score"]) for score in reply["results"]] == expected
        assert reply["image"]["key"] == result.image.key
        assert reply["model"]["digest"] == answer.model.digest


def test_an_image_is_sent_once_and_then_named_by_its_key(http: httpx.Client, photo: bytes) -> None:
    key = http.post("/embed", files={"image": photo}).json()["image"]["key"]
    point = {"points": [{"x": 200, "y": 150}]}
    reply = http.post("/segment", json={"image": {"key": key}, "prompts": [point]}).json()
    assert reply["image"]["cached"] is True
    (mask,) = reply["results"][0]["masks"]
    assert (mask["rle"]["height"], mask["rle"]["width"]) == (300, 451)


def test_nobody_can_have_an_image_kept_under_the_key_of_another(
    channel: grpc.Channel, http: httpx.Client
) -> None:
    """Heads send the key to the backbone in a header, which the front door removes."""
    victim = image_key(png(7, noise=secrets.randbits(32)))  # of a picture never sent
    header, embed = {IMAGE_KEY: victim}, rpc.BackboneServiceStub(channel).Embed
    request = pb.EmbedRequest(image=pb.Image(encoded=png(8)))
    answers = [embed(request, metadata=tuple(header.items())).image.key]
    for path, data in (("/embed", {}), ("/classify", {"labels": LABELS})):
        reply = http.post(path, files={"image": png(8)}, data=data, headers=header)
        answers.append(reply.json()["image"]["key"])
    assert set(answers) == {image_key(png(8))}
    by_key = pb.EmbedRequest(image=pb.Image(key=victim))
    assert failure(lambda: embed(by_key)).code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize(
    ("path", "data"),
    [("/semantic", {"labels": LABELS}), ("/explain", {"label": LABELS[0], "others": LABELS[1:]})],
)
def test_those_who_accept_a_picture_get_one(
    http: httpx.Client, photo: bytes, path: str, data: dict[str, object]
) -> None:
    files = {"image": photo}
    reply = http.post(path, files=files, data=data, headers={"accept": "image/png"})
    assert reply.headers["content-type"] == "image/png"
    width, height = reply.content[16:20], reply.content[20:24]
    assert (int.from_bytes(width), int.from_bytes(height)) == (451, 300)


def test_health_of_the_whole_and_of_each_service(channel: grpc.Channel) -> None:
    stub = HealthStub(channel)
    for service in ("", *SERVICES):
        answer = stub.Check(HealthCheckRequest(service=service))
        assert answer.status == HealthCheckResponse.SERVING
    watch = stub.Watch(HealthCheckRequest())
    assert next(watch).status == HealthCheckResponse.SERVING
    watch.cancel()
    unknown = failure(lambda: stub.Check(HealthCheckRequest(service="other")))
    assert unknown.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_lists_and_describes_the_services(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert {*SERVICES, "grpc.health.v1.Health"} <= set(database.get_services())
    file = database.FindFileContainingSymbol("samclip.v1.BackboneService")
    assert file.package == "samclip.v1"


def test_unknown_services_and_methods_are_unimplemented(channel: grpc.Channel) -> None:
    for path in ("/other.Service/Do", "/samclip.v1.BackboneService/Do"):
        error = failure(lambda path=path: channel.unary_unary(path)(b""))  # type: ignore[misc]
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED


def test_ready_names_every_application(http: httpx.Client) -> None:
    report = http.get("/readyz").json()
    assert report["ready"] is True
    assert set(report["services"]) == set(ROUTES)
    assert http.get("/healthz").status_code == 200


def test_the_routes_of_the_document_are_those_that_answer(http: httpx.Client) -> None:
    for path, item in http.get("/openapi.json").json()["paths"].items():
        for method in item:
            status = http.request(method, path, json={} if method == "post" else None).status_code
            assert status not in (404, 405), (method, path)
    assert http.get("/").headers["content-type"].startswith("text/html")
    assert http.get("/docs/static/swagger-ui.css").status_code == 200


def test_errors_are_the_same_over_grpc_and_http(channel: grpc.Channel, http: httpx.Client) -> None:
    headers = {"x-request-id": "e2e-1"}
    fields = {"image": {"key": "0" * 64}, "labels": LABELS}
    reply = http.post("/classify", json=fields, headers=headers)
    request = pb.ClassifyRequest(images=[pb.Image(key="0" * 64)], labels=LABELS)
    error = failure(lambda: rpc.ClassificationServiceStub(channel).Classify(request))
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["x-request-id"] == reply.json()["request_id"] == "e2e-1"
    assert (reply.status_code, error.code()) == (409, grpc.StatusCode.FAILED_PRECONDITION)
    assert reply.json()["detail"] == error.details()
    assert "request_id" in dict(error.trailing_metadata())


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (json.dumps({"labels": LABELS, "colour": 1}).encode(), "application/json", 400),
        (b"\xff\xd8", "image/jpeg", 415),
    ],
)
def test_bodies_that_cannot_be_read(
    http: httpx.Client, content: bytes, kind: str, status: int
) -> None:
    reply = http.post("/classify", content=content, headers={"content-type": kind})
    assert reply.status_code == reply.json()["status"] == status


def test_too_large_a_body_is_refused_before_it_is_sent(service: Service) -> None:
    connection = HTTPConnection("127.0.0.1", service.http_port, timeout=60)
    connection.putrequest("POST", "/classify")
    connection.putheader("content-length", str(2**40))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_inner_ports_refuse_what_did_not_come_through_the_front_door(service: Service) -> None:
    inner = f"http://127.0.0.1:{service.inner_http_port}/gateway/healthz"
    assert httpx.get(inner, headers={SECRET_HEADER: "guessed"}).status_code == 401
    assert httpx.get(inner, headers={SECRET_HEADER: service.secret}).status_code == 200
    with grpc.insecure_channel(f"127.0.0.1:{service.inner_grpc_port}") as channel:
        stub = rpc.BackboneServiceStub(channel)
        request = pb.EmbedTextRequest(texts=["a cat"])
        application = ("application", "backbone")
        error = failure(lambda: stub.EmbedText(request, metadata=[application], timeout=60))
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        admitted = [application, (SECRET_HEADER, service.secret)]
        assert stub.EmbedText(request, metadata=admitted, timeout=60).tensor.shape[0] == 1


def test_metrics_count_requests_of_all_replicas(channel: grpc.Channel, http: httpx.Client) -> None:
    sample = 'samclip_requests_total{code="OK",rpc="Describe",service="RetrievalService"} '

    def count() -> float:
        lines = http.get("/metrics").text.splitlines()
        return sum(float(line[len(sample) :]) for line in lines if line.startswith(sample))

    before = count()
    rpc.RetrievalServiceStub(channel).Describe(pb.DescribeRequest())
    http.post("/describe", json={})
    assert count() == before + 2
