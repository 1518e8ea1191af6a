"""The real HAProxy with our configuration, in front of small servers that stand in for Serve."""

import json
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import samclip

from services import front_door, keys, renewal
from services.instance import free_port
from services.settings import Settings
from services.urgency import Urgency
from tests import tls

SECRET = "sesame"
GENERIC = "Path not found. Ping http://.../-/routes for available routes."


@dataclass
class Serve:
    """Stands in for Serve: remembers what reached it, and answers as told."""

    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    answer: tuple[int, str, str] = (200, "application/json", "{}")
    grpc_answer: tuple[grpc.StatusCode, str] = (grpc.StatusCode.OK, "")
    gate: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Door:
    """The front door, open."""

    settings: Settings
    serve: Serve
    http: httpx.Client
    channel: grpc.Channel
    admin: Path
    process: subprocess.Popen[bytes]

    def call(self, path: str, *metadata: tuple[str, str]) -> bytes:
        method = self.channel.unary_unary(path)
        return bytes(method(b"", metadata=metadata, timeout=20))


@contextmanager
def http_server(serve: Serve) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            serve.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
            serve.gate.wait(20)
            code, kind, body = serve.answer
            self.send_response(code)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            with suppress(ConnectionError):  # the front door may answer by itself, without it
                self.wfile.write(body.encode())

        do_POST = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@contextmanager
def grpc_server(serve: Serve) -> Iterator[int]:
    class Anything(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            metadata = {name: str(value) for name, value in details.invocation_metadata}

            def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
                serve.requests.append((details.method, metadata))
                code, message = serve.grpc_answer
                if code is not grpc.StatusCode.OK:
                    context.abort(code, message)
                return request

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[Anything()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()


@contextmanager
def opened(serve: Serve, ready: bool = True, **values: Any) -> Iterator[Door]:
    with http_server(serve) as inner_http, grpc_server(serve) as inner_grpc:
        settings = Settings(
            http_port=free_port(),
            grpc_port=free_port(),
            inner_http_port=inner_http,
            inner_grpc_port=inner_grpc,
            front_door_secret=SECRET,
            max_request_bytes=1000,
            **values,
        )
        admin = Path(tempfile.mkdtemp(prefix="door-")) / "s"  # tmp_path is too long for a socket
        process = front_door.start(settings, admin)
        channel = grpc.insecure_channel(f"127.0.0.1:{settings.grpc_port}")
        client = httpx.Client(base_url=f"http://127.0.0.1:{settings.http_port}", timeout=20)
        try:
            while not is_up(admin):
                time.sleep(0.01)
            if ready:
                grpc.channel_ready_future(channel).result(timeout=20)
            yield Door(settings, serve, client, channel, admin, process)
        finally:
            serve.gate.set()
            channel.close()
            client.close()
            front_door.stop(process)
            shutil.rmtree(admin.parent)


def is_up(admin: Path) -> bool:
    try:
        return renewal.tell(admin, "show info").startswith("Name: HAProxy")
    except OSError:
        return False


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
        ("/classify", "/classification/classify"),
        ("/segment", "/segmentation/segment"),
        ("/everything", "/segmentation/everything"),
        ("/semantic?x=1", "/semantic/semantic?x=1"),
        ("/index", "/retrieval/index"),
        ("/search", "/retrieval/search"),
        ("/delete", "/retrieval/delete"),
        ("/describe", "/retrieval/describe"),
        ("/items", "/retrieval/items"),
        ("/embed", "/backbone/embed"),
        ("/", "/gateway/"),
        ("/docs/static/x.js", "/gateway/docs/static/x.js"),
        ("/backbone/healthz", "/gateway/backbone/healthz"),
    ],
)
def test_each_path_reaches_its_application(door: Door, path: str, inner: str) -> None:
    assert door.http.get(path).status_code == 200
    assert door.serve.requests[0][0] == inner


@pytest.mark.parametrize(
    ("method", "application"),
    [
        ("/samclip.v1.ClassificationService/Classify", "classification"),
        ("/samclip.v1.SegmentationService/Segment", "segmentation"),
        ("/samclip.v1.SemanticSegmentationService/SegmentText", "semantic"),
        ("/samclip.v1.RetrievalService/Search", "retrieval"),
        ("/samclip.v1.BackboneService/Embed", "backbone"),
        ("/grpc.health.v1.Health/Check", "gateway"),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "gateway"),
    ],
)
def test_each_service_reaches_its_application(door: Door, method: str, application: str) -> None:
    door.call(method, ("application", "someone-elses"))
    ((path, metadata),) = door.serve.requests
    assert path == method
    assert metadata["application"] == application


def test_an_unknown_service_is_unimplemented(door: Door) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        door.call("/samclip.v1.PaintingService/Paint")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert not door.serve.requests


def test_the_secret_is_ours_alone_to_set(door: Door) -> None:
    header = (front_door.SECRET_HEADER, "guessed")
    door.http.get("/classify", headers=dict([header]))
    door.call("/samclip.v1.BackboneService/Embed", header)
    assert [seen[front_door.SECRET_HEADER] for _, seen in door.serve.requests] == [SECRET, SECRET]


def test_headers_that_would_steer_serve_are_taken_away(door: Door) -> None:
    door.http.get("/classify", headers={"x-request-timeout-seconds": "-1"})
    assert "x-request-timeout-seconds" not in door.serve.requests[0][1]


def test_the_deadline_of_a_call_is_told_in_a_header_that_serve_keeps(door: Door) -> None:
    door.call("/samclip.v1.BackboneService/Embed", ("x-samclip-timeout", "9H"))
    told = Urgency.read(door.serve.requests[-1][1], most_s=1000)
    left_s = told.time_left()
    assert left_s is not None
    assert left_s < 30  # the time-out of the call, a little rounded, whatever its caller claims


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


@pytest.mark.parametrize(
    ("inner", "outer", "retry_after"),
    [(429, 429, "1"), (408, 504, None), (500, 503, "1"), (503, 503, "1")],
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


FIRST = keys.Key(keys.digest("first-key"), "ann", ("read", "index"), "acme")
SECOND = keys.Key(keys.digest("second, key"), "bob", ("read",), "-")
EMBED = "/samclip.v1.BackboneService/Embed"


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Door]:
    """A door that asks for keys, those in its file."""
    file = tmp_path / "keys"
    keys.write(file, [FIRST, SECOND])
    serve = Serve()
    serve.gate.set()
    with opened(serve, api_keys_file=file) as door:
        yield door


def refused(door: Door, key: str) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        door.call(EMBED, ("x-api-key", key))
    return caught.value.code(), caught.value.details()


def test_keys_are_asked_for_where_they_are_configured(guarded: Door) -> None:
    for sent in ({}, {"x-api-key": "third-key"}, {"x-api-key": FIRST.sha256}):
        reply = guarded.http.get("/classify", headers=sent)
        assert (reply.status_code, reply.json()["status"]) == (401, 401)
        assert reply.headers["www-authenticate"] == "Bearer"
    assert guarded.http.get("/classify", headers={"x-api-key": "first-key"}).is_success
    assert guarded.http.get("/classify", headers={"authorization": "Bearer second, key"}).is_success
    assert guarded.http.get("/readyz").is_success
    assert refused(guarded, "third-key")[0] is grpc.StatusCode.UNAUTHENTICATED
    guarded.call(EMBED, ("x-api-key", "first-key"))
    guarded.call(EMBED, ("authorization", "Bearer second, key"))
    guarded.call("/grpc.health.v1.Health/Check")


def test_who_is_refused_is_logged_and_others_where_that_is_asked_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys"
    keys.write(file, [FIRST])
    for level, logged in (("WARNING", ["key"]), ("INFO", ["key", "-"])):
        serve = Serve()
        serve.gate.set()
        with opened(serve, api_keys_file=file, log_level=level) as door:
            door.http.get("/classify", headers={"x-api-key": "wrong"})
            door.http.get("/classify", headers={"x-api-key": "first-key"})
        lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
        found = [json.loads(line) for line in lines]
        assert [line["refused"] for line in found if line["path"] == "/classify"] == logged
        assert found[-1]["key"] == ("ann" if len(logged) > 1 else "-")
        assert "first-key" not in "".join(lines)


def test_inside_it_is_known_whose_key_it_was_and_the_key_is_not(guarded: Door) -> None:
    claimed = {"x-samclip-key": "root", "x-samclip-scopes": "admin", "x-samclip-tenant": "all"}
    guarded.http.get("/classify", headers={"x-api-key": "first-key", **claimed})
    guarded.call(EMBED, ("authorization", "Bearer second, key"), *claimed.items())
    guarded.http.get("/readyz", headers=claimed)
    first, second, nobody = (headers for _, headers in guarded.serve.requests)
    names = ("x-samclip-key", "x-samclip-scopes", "x-samclip-tenant")
    assert [first[name] for name in names] == ["ann", "read,index", "acme"]
    assert [second[name] for name in names] == ["bob", "read", "-"]
    assert not nobody.keys() & {*names}
    assert not (first.keys() | second.keys()) & {"x-api-key", "authorization"}


def test_what_callers_claim_to_be_is_taken_away_where_no_keys_are_asked_for(door: Door) -> None:
    claimed = {"x-samclip-key": "root", "x-samclip-scopes": "admin", "x-samclip-tenant": "all"}
    door.http.get("/classify", headers=claimed)
    door.call(EMBED, *claimed.items())
    for _, headers in door.serve.requests:
        assert not headers.keys() & claimed.keys()


def test_a_key_may_ask_so_often(guarded: Door) -> None:
    file = guarded.settings.api_keys_file
    assert file
    keys.write(file, [replace(FIRST, rate=3), SECOND])
    renewal.hand_in_keys(guarded.admin, file)
    sent = {"x-api-key": "first-key"}
    replies = [guarded.http.get("/classify", headers=sent) for _ in range(60)]
    late = [reply for reply in replies if reply.status_code == 429]
    assert late
    assert "ann may ask 3 times a second" in late[0].json()["detail"]
    assert late[0].headers["retry-after"] == "1"
    for _ in range(60):
        assert guarded.http.get("/classify", headers={"x-api-key": "second, key"}).is_success
    while (reply := guarded.http.get("/classify", headers=sent)).status_code == 429:
        time.sleep(0.1)  # what was refused does not count
    assert reply.is_success


def test_a_key_may_have_so_many_requests_in_flight(guarded: Door) -> None:
    file = guarded.settings.api_keys_file
    assert file
    keys.write(file, [replace(FIRST, inflight=1)])
    renewal.hand_in_keys(guarded.admin, file)
    guarded.serve.gate.clear()
    sent = {"x-api-key": "first-key"}
    with futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(guarded.http.get, "/classify", headers=sent)
        while not guarded.serve.requests:
            time.sleep(0.01)
        code, details = refused(guarded, "first-key")
        guarded.serve.gate.set()
        assert first.result().is_success
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "ann may have 1 requests in flight" in details
    guarded.call(EMBED, ("x-api-key", "first-key"))


@dataclass(frozen=True)
class Certificates:
    ca: Path
    server: Path
    client: Path
    stranger: Path


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    directory = tmp_path_factory.mktemp("tls")
    ca = tls.certificate(directory, "ca")
    server, client = (tls.certificate(directory, name, ca) for name in ("localhost", "client"))
    return Certificates(ca, server, client, tls.certificate(directory, "stranger"))


def asked(door: Door, credentials: grpc.ChannelCredentials) -> bytes:
    address = f"localhost:{door.settings.grpc_port}"
    with grpc.secure_channel(address, credentials) as channel:
        method = channel.unary_unary(EMBED)
        return bytes(method(b"hello", timeout=20, wait_for_ready=False))


def browser(door: Door, ca: Path, own: Path | None = None) -> httpx.Client:
    context = ssl.create_default_context(cafile=ca)
    if own:
        context.load_cert_chain(own)
    url = f"https://localhost:{door.settings.http_port}"
    return httpx.Client(base_url=url, verify=context, timeout=20)


def test_both_ports_speak_tls_and_nothing_else(certificates: Certificates) -> None:
    serve = Serve()
    serve.gate.set()
    with opened(serve, ready=False, tls_cert_file=certificates.server) as door:
        assert asked(door, samclip.credentials(certificates.ca)) == b"hello"
        with browser(door, certificates.ca) as client:
            assert client.get("/classify").is_success
        for ca in (certificates.stranger, certificates.client):
            with pytest.raises(grpc.RpcError):
                asked(door, samclip.credentials(ca))
        with pytest.raises(grpc.RpcError):
            door.call(EMBED)
        with pytest.raises(httpx.TransportError):
            door.http.get("/classify")
    assert len(serve.requests) == 2


def test_callers_show_a_certificate_where_that_is_configured(certificates: Certificates) -> None:
    serve = Serve()
    serve.gate.set()
    settings = {"tls_cert_file": certificates.server, "tls_client_ca_file": certificates.ca}
    with opened(serve, ready=False, **settings) as door:
        assert asked(door, samclip.credentials(certificates.ca, certificates.client)) == b"hello"
        with browser(door, certificates.ca, certificates.client) as client:
            assert client.get("/classify").is_success
        for own in (None, certificates.stranger):
            with pytest.raises(grpc.RpcError):
                asked(door, samclip.credentials(certificates.ca, own))
            with browser(door, certificates.ca, own) as client, pytest.raises(httpx.TransportError):
                client.get("/classify")
    assert len(serve.requests) == 2


def test_pages_of_other_sites_may_not_ask(door: Door) -> None:
    host = f"127.0.0.1:{door.settings.http_port}"
    assert door.http.post("/classify", headers={"origin": f"http://{host}"}).is_success
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        reply = door.http.post("/classify", headers={"origin": origin})
        assert (reply.status_code, reply.json()["status"]) == (403, 403)
        assert "access-control-allow-origin" not in reply.headers
    assert len(door.serve.requests) == 1


def test_security_headers(door: Door) -> None:
    headers = door.http.get("/").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_without_serve_it_says_that_the_service_is_not_up() -> None:
    settings = Settings(
        http_port=free_port(),
        grpc_port=free_port(),
        inner_http_port=free_port(),
        inner_grpc_port=free_port(),
        front_door_secret=SECRET,
    )
    process = front_door.start(settings)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{settings.grpc_port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=20)
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary("/samclip.v1.BackboneService/Embed")(b"", timeout=20)
        reply = httpx.get(f"http://127.0.0.1:{settings.http_port}/classify", timeout=20)
    finally:
        front_door.stop(process)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
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
        process = front_door.start(settings)
        wait_for_port(settings.http_port)
        url = f"http://127.0.0.1:{settings.http_port}/classify"
        with futures.ThreadPoolExecutor(2) as pool:
            reply = pool.submit(httpx.get, url, timeout=20)
            while not serve.requests:
                time.sleep(0.01)
            stopped = pool.submit(front_door.stop, process)
            while is_open(settings.http_port):
                time.sleep(0.01)
            serve.gate.set()
            assert reply.result().status_code == 200
            stopped.result()
    assert process.returncode == 0


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for_port(port: int) -> None:
    while not is_open(port):
        time.sleep(0.01)


def test_admission(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(front_door.SECRET_VARIABLE, SECRET)
    assert front_door.admitted({front_door.SECRET_HEADER: SECRET})
    assert not front_door.admitted({front_door.SECRET_HEADER: "guessed"})
    assert not front_door.admitted({front_door.SECRET_HEADER: "geraten – é"})
    assert not front_door.admitted({})
    monkeypatch.delenv(front_door.SECRET_VARIABLE)
    assert not front_door.admitted({front_door.SECRET_HEADER: ""})


def test_the_heads_find_the_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(front_door.SECRET_VARIABLE, SECRET)
    address, metadata = front_door.backbone(Settings(inner_grpc_port=1234))
    assert address == "127.0.0.1:1234"
    assert dict(metadata) == {"application": "backbone", front_door.SECRET_HEADER: SECRET}
    elsewhere = Settings(backbone_address="gpu-cluster:9000")
    assert front_door.backbone(elsewhere) == ("gpu-cluster:9000", ())
    with_key = elsewhere.model_copy(update={"backbone_api_key": "k"})
    assert front_door.backbone(with_key)[1] == (("x-api-key", "k"),)
    assert "backbone" in front_door.applications(Settings())
    assert "backbone" not in front_door.applications(elsewhere)
