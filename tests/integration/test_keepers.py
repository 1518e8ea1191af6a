"""The limits of a key hold for several front doors together, over HTTP and gRPC."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import grpc
import httpx
import pytest

from services.front_door import haproxy, keys
from tests.door import EMBED, SECRET, Door, Serve, answering, grpc_server, http_server, opened
from tests.ports import free_port

HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
RATED = keys.Key(keys.digest("rated-key"), "ann", ("read",), "acme", rate=5)
RATED_TOO = keys.Key(keys.digest("rated-too"), "amy", ("read",), "acme", rate=5)
HELD = keys.Key(keys.digest("held-key"), "bob", ("read",), "acme", inflight=2)
FREE = keys.Key(keys.digest("free-key"), "eve", ("read",), "acme")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Door]]:
    """Run three front doors of one cluster in front of the same service."""
    file = tmp_path_factory.mktemp("doors") / "keys"
    keys.write(file, [RATED, RATED_TOO, HELD, FREE])
    ports = {"keeper_http_port": free_port(), "keeper_grpc_port": free_port()}
    serve = answering()
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                opened(serve, host=host, front_doors=HOSTS, api_keys_file=file, **ports)
            )
            for host in HOSTS
        ]


@pytest.fixture
def doors(shared: list[Door]) -> list[Door]:
    vars(shared[0].serve).update(vars(answering()))
    return shared


def over_http(door: Door, key: str) -> str:
    reply = door.http.get("/classify?x=1", headers={"x-api-key": key, "x-request-id": "r-1"})
    assert reply.headers["x-request-id"] == "r-1"
    return str(reply.status_code)


def over_grpc(door: Door, key: str) -> str:
    try:
        door.call(EMBED, ("authorization", f"Bearer {key}"))
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


@pytest.mark.parametrize(
    ("ask", "key", "fine", "late"),
    [
        (over_http, "rated-key", "200", "429"),
        (over_grpc, "rated-too", "OK", "RESOURCE_EXHAUSTED"),
    ],
)
def test_all_together_let_in_a_rate_once(
    doors: list[Door], ask: Callable[[Door, str], str], key: str, fine: str, late: str
) -> None:
    """Of a rate of 5 per second, three doors that count alone would let in 15 at once."""
    start = time.monotonic()
    found = Counter(ask(door, key) for _ in range(20) for door in doors)
    assert found.keys() == {fine, late}
    assert found[fine] <= RATED.rate * (time.monotonic() - start + 2)
    assert {ask(door, "free-key") for door in doors for _ in range(9)} == {fine}


def test_requests_in_flight_are_those_of_all_doors(doors: list[Door]) -> None:
    serve = doors[0].serve
    serve.gate.clear()
    with futures.ThreadPoolExecutor(2) as pool:
        two = [pool.submit(over_http, door, "held-key") for door in doors[:2]]
        while len(serve.requests) < 2:
            pass
        assert over_http(doors[2], "held-key") == "429"
        assert over_grpc(doors[2], "held-key") == "RESOURCE_EXHAUSTED"
        serve.gate.set()
        assert [request.result() for request in two] == ["200", "200"]


def test_a_request_arrives_as_from_a_single_door(doors: list[Door]) -> None:
    for door in doors:
        assert over_http(door, "held-key") == "200"
        assert over_grpc(door, "held-key") == "OK"
    for path, headers in doors[0].serve.requests:
        assert path in ("/classification/classify?x=1", EMBED)
        assert (headers["x-samclip-key"], headers["x-samclip-tenant"]) == ("bob", "acme")
        assert headers["x-samclip-front-door"] == SECRET
        assert not headers.keys() & {"x-api-key", "authorization"}


@contextmanager
def before_a_keeper(http_port: int, grpc_port: int, file: Path) -> Iterator[Door]:
    """Run a front door whose only keeper is what listens at these ports of 127.0.0.1."""
    ports = {"keeper_http_port": http_port, "keeper_grpc_port": grpc_port}
    keys.write(file, [RATED])
    names = {"host": "127.0.0.2", "front_doors": ("127.0.0.1",)}
    with opened(Serve(), **names, **ports, api_keys_file=file) as door:
        yield door


def test_keys_do_not_travel_between_doors(tmp_path: Path) -> None:
    """The ports between doors have no TLS, so what they pass on does not contain the key."""
    keeper = answering()
    with (
        http_server(keeper) as http,
        grpc_server(keeper) as rpc,
        before_a_keeper(http, rpc, tmp_path / "keys") as door,
    ):
        assert over_http(door, "rated-key") == "200"
        assert over_grpc(door, "rated-key") == "OK"
    assert [path for path, _ in keeper.requests] == ["/classify?x=1", EMBED]
    for _, headers in keeper.requests:
        assert headers["x-samclip-front-door"] == SECRET
        assert "rated-key" not in str(headers)


def test_only_doors_may_name_a_key_by_its_hash(doors: list[Door]) -> None:
    spoofed = {"x-samclip-key-hash": FREE.sha256}
    assert doors[0].http.get("/classify", headers=spoofed).status_code == 401
    with pytest.raises(grpc.RpcError) as raised:
        doors[0].call(EMBED, *spoofed.items())
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert over_http(doors[0], "free-key") == "200"
    assert not any("x-samclip-key-hash" in headers for _, headers in doors[0].serve.requests)


def test_a_keeper_that_ends_during_a_request_is_a_plain_error(tmp_path: Path) -> None:
    def hang_up(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.recv(9)
                connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener, grpc_server(Serve()) as rpc:
        port = listener.getsockname()[1]
        threading.Thread(target=hang_up, args=[listener], daemon=True).start()
        with before_a_keeper(port, rpc, tmp_path / "keys") as door:
            reply = door.http.get("/classify", headers={"x-api-key": "rated-key"})
        listener.shutdown(socket.SHUT_RDWR)
    assert reply.status_code == 502
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["request_id"] == reply.headers["x-request-id"]


def test_the_ports_between_doors_serve_nobody_else(doors: list[Door]) -> None:
    settings = doors[0].settings
    for headers in ({}, {"x-samclip-front-door": "guess"}):
        url = f"http://{HOSTS[0]}:{settings.keeper_http_port}/classify"
        reply = httpx.get(url, headers={"x-api-key": "free-key", **headers})
        assert reply.status_code == 403


def test_another_door_counts_when_one_has_ended(doors: list[Door]) -> None:
    """Whichever of the three is the keeper of a key, the other two go on without it.

    This test is the last one, because it stops the doors.
    """
    for gone in (2, 1):
        haproxy.stop(doors[gone].process)
        for door in doors[:gone]:
            assert over_http(door, "held-key") == "200"
            assert over_grpc(door, "held-key") == "OK"
