"""From which pages and under which host names the front door is used."""

from pathlib import Path
from typing import Any

import pytest

from services.front_door import keys
from services.settings import Settings
from tests.door import Door, answering, opened


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
    serve, site = answering(), "https://app.example:8443"
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
def test_what_is_no_origin_or_a_host_with_its_port_is_no_setting(origin: str) -> None:
    with pytest.raises(ValueError, match="cors_origins"):
        Settings(cors_origins=origin)
    with pytest.raises(ValueError, match="allowed_hosts"):
        Settings(allowed_hosts="a.example:8000")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", ""])
def test_another_host_is_not_ours(door: Door, host: str) -> None:
    reply = door.http.get("/describe", headers={"host": f"{host}:{door.settings.http_port}"})
    assert (reply.status_code, reply.json()["status"]) == (421, 421)
    assert "the setting allowed_hosts" in reply.json()["detail"]
    assert reply.headers["content-type"] == "application/problem+json"
    assert not door.serve.requests


def test_this_machine_is_known_by_its_own_names_and_for_probes_by_any(door: Door) -> None:
    own = ("localhost", "LOCALHOST", "127.0.0.1", "127.1.2.3", "[::1]")
    asked = [(f"{host}{port}", "/describe") for host in own for port in ("", ":8000")]
    probes = ("/healthz", "/readyz", "/metrics", "/metrics/front-door")
    for host, path in (*asked, *(("samclip:8000", path) for path in probes)):
        assert door.http.get(path, headers={"host": host}).is_success, (host, path)


@pytest.mark.parametrize(
    ("values", "allowed"),
    [
        ({"allow_open": True}, "evil.example"),
        ({"allow_open": True, "allowed_hosts": "a.example, [fe80::1]"}, "a.example [fe80::1]"),
        ({"allowed_hosts": ["a.example"]}, "a.example"),
    ],
)
def test_hosts_are_those_of_the_setting(values: dict[str, Any], allowed: str) -> None:
    serve = answering()
    with opened(serve, ready=False, **values) as door:
        for host in allowed.split():
            assert door.http.get("/describe", headers={"host": f"{host}:8000"}).is_success
        other = door.http.get("/describe", headers={"host": "other.example"})
        assert other.is_success == (set(values) == {"allow_open"})


def test_security_headers(door: Door) -> None:
    headers = door.http.get("/").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
