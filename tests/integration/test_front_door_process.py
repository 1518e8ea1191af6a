"""The front door as a process: started, alone, stopped, and with Serve away."""

import os
import socket
import subprocess
import sys
from concurrent import futures

import grpc
import httpx
import pytest

from services.front_door import haproxy
from services.request import calls
from services.settings import Settings
from tests.door import SECRET, Door, Serve, answering, grpc_server, http_server, wait_until
from tests.ports import free_port


def settings_of(inner_http: int) -> Settings:
    return Settings(
        http_port=free_port(),
        grpc_port=free_port(),
        inner_http_port=inner_http,
        inner_grpc_port=free_port(),
        front_door_secret=SECRET,
    )


def test_without_serve_it_says_that_the_service_is_not_up() -> None:
    settings = settings_of(free_port())
    process = haproxy.start(settings)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{settings.grpc_port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=20)
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary("/samclip.v1.BackboneService/Embed")(b"", timeout=20)
        url = f"http://127.0.0.1:{settings.http_port}"
        reply = httpx.get(f"{url}/classify", timeout=20)
        metrics = httpx.get(f"{url}/metrics/front-door", timeout=20).text.splitlines()
    finally:
        haproxy.stop(process)
    error = caught.value
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "the service is not up")
    assert (reply.status_code, reply.json()["detail"]) == (503, "the service is not up")
    # The status of the gRPC answer is 200, so the rule for errors of the front door reads this.
    assert 'haproxy_backend_connection_errors_total{proxy="serve_grpc"} 1' in metrics


def test_a_stop_lets_requests_in_flight_finish_and_takes_no_more() -> None:
    serve = Serve()
    with http_server(serve) as inner_http:
        settings = settings_of(inner_http)
        process = haproxy.start(settings)
        wait_until(lambda: is_open(settings.http_port))
        url = f"http://127.0.0.1:{settings.http_port}/classify"
        with futures.ThreadPoolExecutor(2) as pool:
            reply = pool.submit(httpx.get, url, timeout=20)
            wait_until(lambda: bool(serve.requests))
            stopped = pool.submit(haproxy.stop, process)
            wait_until(lambda: not is_open(settings.http_port))
            serve.gate.set()
            assert reply.result().status_code == 200
            stopped.result()
    assert process.returncode == 0


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_only_the_secret_admits_and_without_one_nothing_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(calls.SECRET_VARIABLE, SECRET)
    assert calls.admitted({calls.SECRET_HEADER: SECRET})
    for headers in ({calls.SECRET_HEADER: "geraten – é"}, {}):
        assert not calls.admitted(headers)
    monkeypatch.delenv(calls.SECRET_VARIABLE)
    assert not calls.admitted({calls.SECRET_HEADER: ""})


def test_alone_it_leads_to_the_serve_of_a_cluster_until_it_is_stopped() -> None:
    serve = answering()
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
    assert headers[calls.SECRET_HEADER] == SECRET


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
