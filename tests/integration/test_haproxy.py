"""Routes, headers and errors at the front door; test_front_door_access.py tests access."""

import json
import os
import queue
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from services.front_door import haproxy, keys
from services.request import admission
from services.request.arrival import Pace
from services.request.priority import Priority
from services.request.routes import ROUTES, SERVICES
from services.settings import Settings
from tests.door import (
    EMBED,
    SECRET,
    SESSIONS,
    Door,
    Serve,
    grpc_server,
    http_server,
    logged,
    opened,
)
from tests.ports import free_port

GENERIC = "Path not found. Ping http://.../-/routes for available routes."


@pytest.fixture(scope="module")
def shared() -> Iterator[Door]:
    with opened(Serve()) as door:
        yield door


@pytest.fixture
def door(shared: Door) -> Door:
    fresh = Serve()
    fresh.gate.set()
    vars(shared.serve).update(vars(fresh))
    return shared


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


def test_the_trace_of_a_caller_goes_on_behind_it(door: Door) -> None:
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    door.http.get("/classify", headers={"traceparent": parent})
    door.call("/samclip.v1.BackboneService/Embed", ("traceparent", parent))
    assert [headers["traceparent"] for _, headers in door.serve.requests] == [parent, parent]


def test_what_the_front_door_counts_is_told_by_itself(door: Door) -> None:
    text = door.http.get("/metrics/front-door").text
    assert 'haproxy_frontend_http_responses_total{proxy="http",code="2xx"}' in text
    assert not door.serve.requests


@pytest.mark.parametrize(
    ("method", "application"),
    [
        *((f"/{service}/{ROUTES[name][0].rpc}", name) for service, name in SERVICES.items()),
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


@pytest.mark.parametrize("method", SESSIONS)
def test_a_session_may_be_silent_for_longer_than_a_request_takes(method: str) -> None:
    messages: queue.Queue[bytes] = queue.Queue()
    with opened(Serve(), request_timeout_s=0.5) as door:
        answers = door.channel.stream_stream(method)(iter(messages.get, b""), timeout=60)
        for silence_s in (0, 3, 0):
            time.sleep(silence_s)
            messages.put(b"a click")
            assert next(answers) == b"a click"
        messages.put(b"")
        assert list(answers) == []


def test_an_unknown_service_is_unimplemented(door: Door) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        door.call("/samclip.v1.PaintingService/Paint")
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


def test_the_secret_is_ours_alone_to_set(door: Door) -> None:
    header = (admission.SECRET_HEADER, "guessed")
    door.http.get("/classify", headers=dict([header]))
    door.call("/samclip.v1.BackboneService/Embed", header)
    assert [seen[admission.SECRET_HEADER] for _, seen in door.serve.requests] == [SECRET, SECRET]


def test_headers_that_would_steer_serve_are_taken_away(door: Door) -> None:
    door.http.get("/classify", headers={"x-request-timeout-seconds": "-1"})
    assert "x-request-timeout-seconds" not in door.serve.requests[0][1]


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
    with socket.create_connection(("127.0.0.1", door.settings.http_port)) as connection:
        head = b"POST /classify HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
        connection.sendall(head + b"fffff\r\n" + bytes(haproxy.BUFFER_BYTES + 4000))
        connection.settimeout(60)
        answer = b"".join(iter(lambda: connection.recv(10_000), b"")).decode()
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


def test_what_callers_claim_to_be_is_taken_away_where_no_keys_are_asked_for(door: Door) -> None:
    claimed = {"x-samclip-key": "root", "x-samclip-scopes": "admin", "x-samclip-tenant": "all"}
    claimed |= {"x-samclip-image-key": "0" * 64, "x-samclip-counted": "1"}
    door.http.get("/classify", headers=claimed)
    door.call(EMBED, *claimed.items())
    for _, headers in door.serve.requests:
        assert not headers.keys() & claimed.keys()


def test_pages_of_other_sites_may_not_ask(door: Door) -> None:
    host = f"127.0.0.1:{door.settings.http_port}"
    assert door.http.post("/classify", headers={"origin": f"http://{host}"}).is_success
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        reply = door.http.post("/classify", headers={"origin": origin})
        assert (reply.status_code, reply.json()["status"]) == (403, 403)
        assert "access-control-allow-origin" not in reply.headers
    assert len(door.serve.requests) == 1


def test_pages_of_the_sites_in_the_setting_may_ask_with_a_key(tmp_path: Path) -> None:
    file, key = tmp_path / "keys", "a" * 20
    keys.write(file, [keys.Key(keys.digest(key), "ann", ("read",), "ann")])
    serve, site = Serve(), "https://app.example:8443"
    serve.gate.set()
    values = {"api_keys_file": file, "cors_origins": f"{site}, http://other.example"}
    with opened(serve, ready=False, **values) as door:
        asked = {"origin": site, "access-control-request-method": "POST"}
        before = door.http.request("OPTIONS", "/classify", headers=asked)
        assert (before.status_code, serve.requests) == (204, [])
        assert "x-api-key" in before.headers["access-control-allow-headers"]
        reply = door.http.post("/classify", headers={"origin": site, "x-api-key": key})
        refused = door.http.post("/classify", headers={"origin": site})
        for each, code in ((before, 204), (reply, 200), (refused, 401)):
            assert each.status_code == code
            assert each.headers["access-control-allow-origin"] == site
            assert each.headers["vary"] == "origin"
        evil = {"origin": "https://evil.example", "x-api-key": key}
        assert door.http.post("/classify", headers=evil).status_code == 403
        reply = door.http.request("OPTIONS", "/classify", headers=evil)
        assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize("origin", ["*", "app.example", "https://app.example/page", "null"])
def test_what_is_no_origin_is_no_setting(origin: str) -> None:
    with pytest.raises(ValueError, match="cors_origins"):
        Settings(cors_origins=origin)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", ""])
def test_another_host_is_not_ours(door: Door, host: str) -> None:
    reply = door.http.get("/describe", headers={"host": f"{host}:{door.settings.http_port}"})
    assert (reply.status_code, reply.json()["status"]) == (421, 421)
    assert "the setting allowed_hosts" in reply.json()["detail"]
    assert reply.headers["content-type"] == "application/problem+json"
    assert not door.serve.requests


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.1.2.3", "[::1]"])
def test_this_machine_is_known_by_its_own_names(door: Door, host: str) -> None:
    for name in (host, f"{host}:8000"):
        assert door.http.get("/describe", headers={"host": name}).is_success


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/metrics/front-door"])
def test_probes_and_scrapers_may_use_any_name(door: Door, path: str) -> None:
    assert door.http.get(path, headers={"host": "samclip:8000"}).is_success


@pytest.mark.parametrize(
    ("values", "allowed"),
    [
        ({"allow_open": True}, "evil.example"),
        ({"allow_open": True, "allowed_hosts": "a.example, [fe80::1]"}, "a.example [fe80::1]"),
        ({"allowed_hosts": ["a.example"]}, "a.example"),
    ],
)
def test_hosts_are_those_of_the_setting(values: dict[str, Any], allowed: str) -> None:
    serve = Serve()
    serve.gate.set()
    with opened(serve, ready=False, **values) as door:
        for host in allowed.split():
            assert door.http.get("/describe", headers={"host": f"{host}:8000"}).is_success
        other = door.http.get("/describe", headers={"host": "other.example"})
        assert other.is_success == (set(values) == {"allow_open"})


def test_a_host_with_its_port_is_no_setting() -> None:
    with pytest.raises(ValueError, match="allowed_hosts"):
        Settings(allowed_hosts="a.example:8000")


def test_a_small_body_that_does_not_arrive_never_reaches_serve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(haproxy, "PACE", Pace(most_s=1))
    serve = Serve()
    with (
        opened(serve, ready=False) as door,
        socket.create_connection(("127.0.0.1", door.settings.http_port)) as connection,
    ):
        head = b"POST /classify HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{"
        connection.sendall(head)
        answer = b"".join(iter(lambda: connection.recv(10_000), b""))
    status, _, rest = answer.decode().partition("\r\n")
    headers, _, body = rest.partition("\r\n\r\n")
    assert status.split()[1] == "408"
    assert "content-type: application/problem+json" in headers
    problem = json.loads(body)
    assert (problem["status"], problem["title"]) == (408, "request too slow")
    assert f"x-request-id: {problem['request_id']}" in headers
    assert not serve.requests


def test_a_request_that_http_cannot_express_is_a_problem(door: Door) -> None:
    with socket.create_connection(("127.0.0.1", door.settings.http_port)) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\n")
        connection.settimeout(20)
        answer = connection.recv(10_000).decode()
    problem = json.loads(answer.partition("\r\n\r\n")[2])
    assert (problem["status"], problem["title"]) == (400, "invalid request")
    assert f"x-request-id: {problem['request_id']}" in answer


def test_a_caller_who_hangs_up_is_gone_behind_the_door_as_well(door: Door) -> None:
    door.serve.gate.clear()
    with socket.create_connection(("127.0.0.1", door.settings.http_port)) as connection:
        connection.sendall(b"GET /classify HTTP/1.1\r\nhost: localhost\r\n\r\n")
        wait_until(lambda: bool(door.serve.requests))
        assert not door.serve.hung_up.is_set()
    assert door.serve.hung_up.wait(60)


def test_security_headers(door: Door) -> None:
    headers = door.http.get("/").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


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
    with socket.create_connection(("127.0.0.1", door.settings.http_port), timeout=20) as opened_:
        headers = f"host: localhost\r\nx-request-id: {identity}\r\nconnection: close"
        opened_.sendall(line + b"\r\n" + headers.encode() + b"\r\n\r\n")
        while opened_.recv(65536):
            pass


def test_without_serve_it_says_that_the_service_is_not_up() -> None:
    settings = Settings(
        http_port=free_port(),
        grpc_port=free_port(),
        inner_http_port=free_port(),
        inner_grpc_port=free_port(),
        front_door_secret=SECRET,
    )
    process = haproxy.start(settings)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{settings.grpc_port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=20)
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary("/samclip.v1.BackboneService/Embed")(b"", timeout=20)
        reply = httpx.get(f"http://127.0.0.1:{settings.http_port}/classify", timeout=20)
    finally:
        haproxy.stop(process)
    error = caught.value
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "the service is not up")
    assert (reply.status_code, reply.json()["detail"]) == (503, "the service is not up")


def test_a_stop_lets_requests_in_flight_finish_and_takes_no_more() -> None:
    serve = Serve()
    with http_server(serve) as inner_http:
        settings = Settings(
            http_port=free_port(),
            grpc_port=free_port(),
            inner_http_port=inner_http,
            inner_grpc_port=free_port(),
            front_door_secret=SECRET,
        )
        process = haproxy.start(settings)
        wait_for_port(settings.http_port)
        url = f"http://127.0.0.1:{settings.http_port}/classify"
        with futures.ThreadPoolExecutor(2) as pool:
            reply = pool.submit(httpx.get, url, timeout=20)
            while not serve.requests:
                time.sleep(0.01)
            stopped = pool.submit(haproxy.stop, process)
            while is_open(settings.http_port):
                time.sleep(0.01)
            serve.gate.set()
            assert reply.result().status_code == 200
            stopped.result()
    assert process.returncode == 0


def wait_until(happened: Callable[[], bool]) -> None:
    while not happened():
        time.sleep(0.01)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for_port(port: int) -> None:
    while not is_open(port):
        time.sleep(0.01)


def test_admission(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(admission.SECRET_VARIABLE, SECRET)
    assert admission.admitted({admission.SECRET_HEADER: SECRET})
    assert not admission.admitted({admission.SECRET_HEADER: "guessed"})
    assert not admission.admitted({admission.SECRET_HEADER: "geraten – é"})
    assert not admission.admitted({})
    monkeypatch.delenv(admission.SECRET_VARIABLE)
    assert not admission.admitted({admission.SECRET_HEADER: ""})


def test_the_heads_find_the_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(admission.SECRET_VARIABLE, SECRET)
    address, metadata = admission.backbone(Settings(inner_grpc_port=1234))
    assert address == "127.0.0.1:1234"
    assert dict(metadata) == {"application": "backbone", admission.SECRET_HEADER: SECRET}
    elsewhere = Settings(backbone_address="gpu-cluster:9000")
    assert admission.backbone(elsewhere) == ("gpu-cluster:9000", ())
    with_key = elsewhere.model_copy(update={"backbone_api_key": "k"})
    assert admission.backbone(with_key)[1] == (("x-api-key", "k"),)
    assert "backbone" in admission.applications(Settings())
    assert "backbone" not in admission.applications(elsewhere)


def test_alone_it_leads_to_the_serve_of_a_cluster_until_it_is_stopped() -> None:
    serve = Serve()
    serve.gate.set()
    with http_server(serve) as inner_http, grpc_server(serve) as inner_grpc:
        ports = [free_port(), free_port()]
        values = {
            "HTTP_PORT": ports[0],
            "GRPC_PORT": ports[1],
            "SERVE_HOST": "localhost",
            "INNER_HTTP_PORT": inner_http,
            "INNER_GRPC_PORT": inner_grpc,
            "FRONT_DOOR_SECRET": SECRET,
        }
        environment = {f"SAMCLIP_{name}": str(value) for name, value in values.items()}
        path = os.pathsep.join(map(str, sys.path))
        process = subprocess.Popen(
            [sys.executable, "-m", "services.front_door.haproxy"],
            env=os.environ | environment | {"PYTHONPATH": path},
        )
        try:
            with grpc.insecure_channel(f"127.0.0.1:{ports[1]}") as channel:
                grpc.channel_ready_future(channel).result(timeout=60)
            assert httpx.post(f"http://127.0.0.1:{ports[0]}/embed", timeout=20).status_code == 200
        finally:
            process.terminate()
        assert process.wait(timeout=60) == 0
    (path, headers) = serve.requests[0]
    assert path == "/backbone/embed"
    assert headers[admission.SECRET_HEADER] == SECRET


def test_alone_it_must_know_where_the_cluster_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAMCLIP_INNER_HTTP_PORT", "8100")
    assert haproxy.main([]) == 2
    assert "set SAMCLIP_INNER_GRPC_PORT to the value" in capsys.readouterr().err


def test_two_front_doors_cannot_share_a_port(door: Door) -> None:
    second = haproxy.start(door.settings)
    try:
        assert second.wait(timeout=30) == 1
    finally:
        second.kill()


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
