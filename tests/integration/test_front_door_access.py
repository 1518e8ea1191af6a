"""Access at the front door: keys, their limits, and certificates."""

import json
import os
import re
import shutil
import ssl
import subprocess
import time
from concurrent import futures
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import samclip

from services.front_door import haproxy, keys, reload
from services.settings import Settings, SettingsError
from tests import tls
from tests.checkout import ROOT
from tests.door import EMBED, FIRST, SECOND, Door, answering, asked, logged, opened


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
    for scheme in ("bearer", "BEARER", "bEARER "):
        assert guarded.http.get(
            "/classify", headers={"authorization": f"{scheme} first-key"}
        ).is_success
        guarded.call(EMBED, ("authorization", f"{scheme} first-key"))
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
    for level, expected in (("WARNING", ["key"]), ("INFO", ["key", "-"])):
        serve = answering()
        with opened(serve, api_keys_file=file, log_level=level) as door:
            door.http.get("/classify", headers={"x-api-key": "wrong"})
            door.http.get("/classify", headers={"x-api-key": "first-key"})
        lines = logged(capfd)
        found = [line for line in lines if line.get("path") == "/classify"]
        assert [line["refused"] for line in found] == expected
        assert found[-1]["key"] == ("ann" if len(expected) > 1 else "-")
        assert "first-key" not in str(lines)


def test_inside_it_is_known_whose_key_it_was_and_the_key_is_not(guarded: Door) -> None:
    claimed = {"x-samclip-key": "root", "x-samclip-scopes": "admin", "x-samclip-tenant": "all"}
    claimed |= {"x-samclip-image-key": "0" * 64, "x-samclip-counted": "1"}
    guarded.http.get("/classify", headers={"x-api-key": "first-key", **claimed})
    guarded.call(EMBED, ("authorization", "Bearer second, key"), *claimed.items())
    guarded.http.get("/readyz", headers=claimed)
    first, second, nobody = (headers for _, headers in guarded.serve.requests)
    names = ("x-samclip-key", "x-samclip-scopes", "x-samclip-tenant")
    assert [first[name] for name in names] == ["ann", "read,index", "acme"]
    assert [second[name] for name in names] == ["bob", "read", "-"]
    assert not nobody.keys() & {*names}
    for headers in (first, second, nobody):
        assert not headers.keys() & {"x-samclip-image-key", "x-samclip-counted"}
    assert not (first.keys() | second.keys()) & {"x-api-key", "authorization"}


def test_a_key_may_ask_so_often(guarded: Door) -> None:
    file = guarded.settings.api_keys_file
    assert file
    keys.write(file, [replace(FIRST, rate=3), SECOND])
    reload.load_keys(guarded.admin, file)
    sent = {"x-api-key": "first-key"}
    replies = [guarded.http.get("/classify", headers=sent) for _ in range(60)]
    late = [reply for reply in replies if reply.status_code == 429]
    assert late
    assert "ann is limited to 3 requests per second" in late[0].json()["detail"]
    assert late[0].headers["retry-after"] == "1"
    for _ in range(60):
        assert guarded.http.get("/classify", headers={"x-api-key": "second, key"}).is_success
    while (reply := guarded.http.get("/classify", headers=sent)).status_code == 429:
        time.sleep(0.1)  # refused requests do not count
    assert reply.is_success


def test_a_key_may_have_so_many_requests_in_flight(guarded: Door) -> None:
    file = guarded.settings.api_keys_file
    assert file
    keys.write(file, [replace(FIRST, inflight=1)])
    reload.load_keys(guarded.admin, file)
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
    assert "ann is limited to 1 requests in flight" in details
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


def browser(door: Door, ca: Path, own: Path | None = None) -> httpx.Client:
    context = ssl.create_default_context(cafile=ca)
    if own:
        context.load_cert_chain(own)
    url = f"https://localhost:{door.settings.http_port}"
    return httpx.Client(base_url=url, verify=context, timeout=20)


def test_both_ports_speak_tls_and_nothing_else(certificates: Certificates) -> None:
    serve = answering()
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


@pytest.mark.skipif(shutil.which("wget") is None, reason="no wget: install it")
@pytest.mark.parametrize("tls", [True, False])
def test_the_containers_health_check_speaks_tls_where_the_service_does(
    certificates: Certificates, tls: bool
) -> None:
    text = (ROOT / "deploy/Dockerfile").read_text().replace("\\\n", "")
    command = re.findall(r"^HEALTHCHECK .* CMD (.*)$", text, re.MULTILINE)[0]
    environment = {"PATH": os.environ["PATH"], "SAMCLIP_TLS_CERT_FILE": "a file" if tls else ""}
    with opened(answering(), ready=False, tls_cert_file=certificates.server) as door:
        command = json.loads(command.replace(":8000/", f":{door.settings.http_port}/"))
        code = subprocess.run(command, env=environment, timeout=60).returncode
    assert (code == 0) is tls


def test_callers_show_a_certificate_where_that_is_configured(certificates: Certificates) -> None:
    serve = answering()
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


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_this_machine_alone_may_ask_without_a_key(host: str) -> None:
    haproxy.check_access(Settings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "host.example"])
def test_others_may_not_unless_that_was_said(host: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"samclip keys add NAME.*allow_open"):
        haproxy.check_access(Settings(host=host))
    haproxy.check_access(Settings(host=host, allow_open=True))
    keys.write(tmp_path / "keys", [])
    haproxy.check_access(Settings(host=host, api_keys_file=tmp_path / "keys"))
    certificate = tls.certificate(tmp_path, "localhost")
    guarded = {"tls_cert_file": certificate, "tls_client_ca_file": certificate}
    haproxy.check_access(Settings.model_validate({"host": host, **guarded}))
    with pytest.raises(SettingsError, match="allow_open"):
        haproxy.check_access(Settings(host=host, tls_cert_file=certificate))


@pytest.mark.parametrize("name", ["my keys", "a,b", "a(b)", "a'b", "a\\b", 'a"b', "a\nb"])
def test_paths_that_haproxy_would_read_another_way_are_refused(tmp_path: Path, name: str) -> None:
    keys.write(tmp_path / name, [])
    with pytest.raises(SettingsError, match=r"(?s)api_keys_file is .* accepts no spaces"):
        haproxy.check_access(Settings(api_keys_file=tmp_path / name))


def test_a_refusal_has_the_shape_of_each_protocol_too(guarded: Door) -> None:
    openai = guarded.http.get("/v1/models")
    assert openai.status_code == 401
    assert openai.json()["error"]["message"] == openai.json()["detail"]
    for path in ("/v2", "/v2/health/ready"):
        triton = guarded.http.get(path)
        assert (triton.status_code, triton.json()["error"]) == (401, openai.json()["detail"])
    assert guarded.http.get("/v1/models", headers={"authorization": "Bearer first-key"}).is_success


def test_each_protocol_has_its_own_way_to_send_a_key(guarded: Door) -> None:
    def allowed(path: str, **sent: Any) -> bool:
        return guarded.http.get(f"/adapters/{path}", **sent).is_success

    assert allowed("label-studio/health", auth=("anyone", "first-key"))
    assert not allowed("label-studio/health", auth=("first-key", "wrong"))
    assert not allowed("label-studio/health")
    assert allowed("x-anylabeling/health", headers={"token": "first-key"})
    assert not allowed("x-anylabeling/health", headers={"token": "wrong"})
    assert not guarded.http.get("/classify", headers={"token": "first-key"}).is_success
    assert not guarded.http.get("/classify", auth=("anyone", "first-key")).is_success
    wrong = {"token": "first-key", "x-api-key": "wrong"}
    assert not allowed("x-anylabeling/health", headers=wrong)
    for _, headers in guarded.serve.requests:
        assert not headers.keys() & {"token", "authorization", "x-api-key"}
