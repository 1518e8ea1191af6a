"""Routes, headers and errors at the front door; test_front_door_*.py test the rest."""

import json

import grpc
import pytest
from samclip.rpcs import RPCS

from services.batching.priority import Priority
from services.front_door import haproxy
from services.request import calls
from services.request.routes import ROUTES, SERVICES
from services.request.transit import Pace
from tests.door import (
    EMBED,
    SECRET,
    Door,
    Serve,
    connected,
    logged,
    opened,
    read_all,
    wait_until,
)

GENERIC = "Path not found. Ping http://.../-/routes for available routes."


@pytest.mark.parametrize(
    ("path", "inner"),
    [
        *((each.path, f"/{name}{each.path}") for name, rows in ROUTES.items() for each in rows),
        ("/semantic?x=1", "/semantic/semantic?x=1"),
        ("/", "/gateway/"),
        ("/docs/static/x.js", "/gateway/docs/static/x.js"),
        ("/backbone/healthz", "/gateway/backbone/healthz"),
    ],
)
def test_each_path_reaches_its_application(door: Door, path: str, inner: str) -> None:
    assert door.http.get(path).status_code == 200
    assert door.serve.requests[0][0] == inner


def test_a_request_without_a_path_reaches_the_gateway(door: Door) -> None:
    with connected(door, door.settings.http_port) as caller:
        caller.sendall(b"GET * HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
        assert b" 200 OK" in caller.recv(100)
    assert door.serve.requests[0][0].startswith("/gateway")


def test_what_the_front_door_counts_is_told_by_itself(door: Door) -> None:
    text = door.http.get("/metrics/front-door").text
    assert 'haproxy_frontend_http_responses_total{proxy="http",code="2xx"}' in text
    assert not door.serve.requests


@pytest.mark.parametrize(
    ("method", "application"),
    [
        *(
            (f"/{method.containing_service.full_name}/{method.name}", name)
            for service, name in SERVICES.items()
            for method in RPCS.values()
            if method.containing_service.full_name == service and not method.server_streaming
        ),
        ("/grpc.health.v1.Health/Check", "gateway"),
        ("/inference.GRPCInferenceService/ModelInfer", "gateway"),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "gateway"),
    ],
)
def test_each_service_reaches_its_application(door: Door, method: str, application: str) -> None:
    door.call(method, ("application", "someone-elses"))
    ((path, metadata),) = door.serve.requests
    assert path == method
    assert metadata["application"] == application


@pytest.mark.parametrize(
    "path",
    [
        "/samclip.v1.PaintingService/Paint",
        "/samclip.v1.BackboneService/Paint",
        "/samclip.v1.BackboneService/",
        "/samclip.v1.BackboneService",
        "/samclip.v1.BackboneService/Embed/",
        "/samclip.v1.BackboneService/Embed?x=1",
        "/classify",
        "//classify",
    ],
)
def test_an_unknown_rpc_is_unimplemented(door: Door, path: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        door.call(path)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert not door.serve.requests


@pytest.mark.parametrize("algorithm", ["Gzip", "Deflate"])
def test_a_compressed_message_is_unimplemented_and_reaches_no_service(
    door: Door, algorithm: str
) -> None:
    compression = grpc.Compression[algorithm]
    with pytest.raises(grpc.RpcError) as caught:
        door.channel.unary_unary(EMBED)(bytes(1000), timeout=20, compression=compression)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "without compression" in caught.value.details()
    assert not door.serve.requests
    door.call(EMBED, ("grpc-encoding", "identity"))
    assert len(door.serve.requests) == 1


def test_what_only_the_front_door_may_set_is_taken_away(door: Door) -> None:
    claimed = {"x-samclip-key": "root", "x-samclip-scopes": "admin", "x-samclip-tenant": "all"}
    claimed |= {"x-samclip-image-key": "0" * 64, "x-samclip-counted": "1"}
    claimed |= {"x-request-timeout-seconds": "-1"}  # it would steer Serve
    sent = {**claimed, calls.SECRET_HEADER: "guessed"}
    door.http.get("/classify", headers=sent)
    del sent["x-request-timeout-seconds"]
    door.call(EMBED, *sent.items())
    for _, headers in door.serve.requests:
        assert not headers.keys() & claimed.keys()
        assert headers[calls.SECRET_HEADER] == SECRET


def test_the_deadline_of_a_call_is_told_in_a_header_that_serve_keeps(door: Door) -> None:
    door.call("/samclip.v1.BackboneService/Embed", ("x-samclip-timeout", "9H"))
    priority = Priority.read(door.serve.requests[-1][1], most_s=1000)
    left_s = priority.time_left()
    assert left_s is not None
    assert left_s < 30  # the rounded time-out of the call, not that of the header


def test_every_request_has_an_id_and_a_harmless_one_is_kept(door: Door) -> None:
    fresh = door.http.get("/classify").headers["x-request-id"]
    kept = door.http.get("/classify", headers={"x-request-id": "mine-1"}).headers["x-request-id"]
    evil = door.http.get("/classify", headers={"x-request-id": 'a"b'}).headers["x-request-id"]
    door.call("/samclip.v1.BackboneService/Embed", ("x-request-id", "mine-2"))
    seen = [headers for _, headers in door.serve.requests]
    assert [headers["x-request-id"] for headers in seen[:3]] == [fresh, "mine-1", evil]
    assert kept == "mine-1"
    assert len(evil) == 36
    assert seen[3]["request_id"] == "mine-2"


def test_a_body_above_the_limit_never_reaches_serve(door: Door) -> None:
    reply = door.http.post("/classify", content=b"x" * 1001)
    assert reply.status_code == 413
    assert "1001 bytes; the limit is 1000" in reply.json()["detail"]
    assert not door.serve.requests


@pytest.mark.parametrize("status", [404, 405, 408, 413, 415])
def test_a_body_is_not_waited_for_once_its_request_is_refused(door: Door, status: int) -> None:
    problem = json.dumps({"status": status, "detail": 'why? "so"'})
    door.serve.answer = (status, "application/problem+json", problem)
    with connected(door, door.settings.http_port) as connection:
        head = b"POST /classify HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
        connection.sendall(head + b"fffff\r\n" + bytes(haproxy.BUFFER_BYTES + 4000))
        answer = read_all(connection).decode()
    assert answer.split()[1] == str(status)
    assert answer.endswith(problem)
    assert ("\r\nallow: GET, HEAD\r\n" in answer) == (status == 405)


@pytest.mark.parametrize(
    ("inner", "outer", "retry_after"),
    [(429, 429, "1"), (408, 504, None), (404, 503, "1"), (500, 503, "1"), (503, 503, "1")],
)
def test_serves_own_errors_become_problems(
    door: Door, inner: int, outer: int, retry_after: str | None
) -> None:
    door.serve.answer = (inner, "text/plain", GENERIC)
    reply = door.http.get("/classify")
    assert reply.status_code == reply.json()["status"] == outer
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["x-request-id"] == reply.json()["request_id"]
    assert reply.headers.get("retry-after") == retry_after


def test_an_applications_own_problem_passes_unchanged(door: Door) -> None:
    problem = json.dumps({"status": 500, "detail": "internal error; request id 7"})
    door.serve.answer = (500, "application/problem+json", problem)
    reply = door.http.get("/classify")
    assert (reply.status_code, reply.text) == (500, problem)


def test_an_application_that_starts_is_unavailable_not_unknown(door: Door) -> None:
    door.serve.grpc_answer = (grpc.StatusCode.NOT_FOUND, "Application 'backbone' not found. Ping …")
    with pytest.raises(grpc.RpcError) as caught:
        door.call("/samclip.v1.BackboneService/Embed")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    door.serve.grpc_answer = (grpc.StatusCode.NOT_FOUND, "no collection 'pets'")
    with pytest.raises(grpc.RpcError) as caught:
        door.call("/samclip.v1.RetrievalService/Search")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_small_body_that_does_not_arrive_never_reaches_serve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(haproxy, "PACE", Pace(most_s=1))
    serve = Serve()
    with opened(serve, ready=False) as door, connected(door, door.settings.http_port) as slow:
        slow.sendall(b"POST /classify HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        answer = read_all(slow)
    status, _, rest = answer.decode().partition("\r\n")
    headers, _, body = rest.partition("\r\n\r\n")
    assert status.split()[1] == "408"
    assert "content-type: application/problem+json" in headers
    problem = json.loads(body)
    assert (problem["status"], problem["title"]) == (408, "request too slow")
    assert f"x-request-id: {problem['request_id']}" in headers
    assert not serve.requests


def test_a_request_that_http_cannot_express_is_a_problem(door: Door) -> None:
    with connected(door, door.settings.http_port) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\n")
        answer = connection.recv(10_000).decode()
    problem = json.loads(answer.partition("\r\n\r\n")[2])
    assert (problem["status"], problem["title"]) == (400, "invalid request")
    assert f"x-request-id: {problem['request_id']}" in answer


def test_a_caller_who_hangs_up_is_gone_behind_the_door_as_well(door: Door) -> None:
    door.serve.gate.clear()
    with connected(door, door.settings.http_port) as connection:
        connection.sendall(b"GET /classify HTTP/1.1\r\nhost: localhost\r\n\r\n")
        wait_until(lambda: bool(door.serve.requests))
        assert not door.serve.hung_up.is_set()
    assert door.serve.hung_up.wait(60)


def test_bytes_that_are_no_message_are_the_callers_fault(door: Door) -> None:
    message = "Unexpected <class 'google.protobuf.message.DecodeError'>: Error parsing message"
    door.serve.grpc_answer = (grpc.StatusCode.UNKNOWN, message)
    with pytest.raises(grpc.RpcError) as caught:
        door.call("/samclip.v1.BackboneService/Embed")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "not a message of this rpc" in (caught.value.details() or "")


HOSTILE_TARGETS = (
    b"/backslash\\",
    b'/quote"',
    b"/braces{}",
    b"/percent%22%5c%0a",
    b"/hash#\\",
    b"/latin\xe9",
    "/ümlaut".encode(),
    b"/query?q=\\",
    b"http://elsewhere/absolute\\",
    b"/long" + b"\\" * 6000,
    b"*",
)


def test_every_line_of_its_log_is_json_with_the_id_of_the_caller(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Hostile bytes in the request line do not break the log."""
    serve = Serve()
    serve.gate.set()
    with opened(serve, ready=False, log_level="INFO") as door:
        for number, target in enumerate(HOSTILE_TARGETS):
            ask_raw(door, b"GET " + target + b" HTTP/1.1", f"id-{number}")
        ask_raw(door, b"M" * 5000 + b" /method HTTP/1.1", "id-method")
        ask_raw(door, b"GET /nothing HTTP/9.1", "id-broken")
        door.call("/samclip.v1.BackboneService/Embed", ("x-request-id", "id-grpc"))
    lines = {line["id"]: line for line in logged(capfd) if "id" in line}
    assert lines["id-0"]["path"] == "/backslash\\"
    assert lines["id-1"]["path"] == '/quote"'
    assert lines["id-grpc"]["path"] == "/samclip.v1.BackboneService/Embed"
    assert lines["id-grpc"]["method"] == "POST"


def ask_raw(door: Door, line: bytes, identity: str) -> None:
    """Send a request line that client libraries reject, and read the reply to its end."""
    with connected(door, door.settings.http_port) as asking:
        headers = f"host: localhost\r\nx-request-id: {identity}\r\nconnection: close"
        asking.sendall(line + b"\r\n" + headers.encode() + b"\r\n\r\n")
        read_all(asking)


@pytest.mark.parametrize("status", [400, 404, 413, 429, 500, 503])
def test_an_error_in_the_shape_of_another_protocol_passes_unchanged(
    door: Door, status: int
) -> None:
    error = json.dumps({"error": {"message": "no model", "code": "model_not_found"}})
    door.serve.answer = (status, "application/json", error)
    reply = door.http.post("/v1/embeddings", json={})
    assert (reply.status_code, reply.text) == (status, error)
    assert reply.headers["content-type"] == "application/json"
    assert door.serve.requests[0][0] == "/gateway/v1/embeddings"


@pytest.mark.parametrize("inner", [404, 408, 429, 503])
def test_serves_own_errors_have_the_shape_of_each_protocol_too(door: Door, inner: int) -> None:
    door.serve.answer = (inner, "text/plain", GENERIC)
    detail = door.http.get("/classify").json()["detail"]
    assert detail
    assert "error" not in door.http.get("/classify").json()
    assert door.http.post("/v1/embeddings", json={}).json()["error"]["message"] == detail
    assert door.http.post("/v2/models/m/infer", json={}).json()["error"] == detail
