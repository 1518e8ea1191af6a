"""Ports, routing, health, reflection, errors, admission and metrics of the real service."""

import base64
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


def test_too_large_a_body_is_refused_before_it_is_sent(service: Service) -> None:
    connection = HTTPConnection("127.0.0.1", service.http_port, timeout=60)
    connection.putrequest("POST", "/classify")
    connection.putheader("content-length", str(2**40))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()
