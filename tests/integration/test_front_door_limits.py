"""Callers who hold connections: unfinished heads and messages, and replies that nobody reads."""

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from services.front_door import haproxy, inner_ports, reload
from services.front_door.keys import digest
from services.request.transit import Pace
from services.settings import Settings
from tests.door import EMBED, Door, Serve, answering, connected, opened, read_all, wait_until
from tests.http2 import HEADERS, RESET, call, frames, head, message

HEALTH = "/grpc.health.v1.Health/Check"


def is_cut(connection: socket.socket) -> bool:
    """Return whether the front door closes a connection without an answer."""
    try:
        return not connection.recv(1)
    except ConnectionResetError:
        return True


def is_refused(door: Door, port: int) -> bool:
    """Return whether a connection from the address is closed, at once or after it is accepted."""
    try:
        with connected(door, port, "127.0.0.2") as another:
            return is_cut(another)
    except ConnectionResetError:
        return True


def test_one_address_has_half_of_the_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(haproxy, "MAX_CONNECTIONS", 8)
    with opened(Serve(), ready=False) as door, ExitStack() as stack:
        head = b"GET /classify HTTP/1.1\r\nx-unfinished: " + bytes(60_000).replace(b"\0", b"a")
        for number in range(4):
            one = stack.enter_context(connected(door, door.settings.http_port, "127.0.0.2"))
            one.sendall(head)
            count = f"conn_cur={number + 1}"
            wait_until(lambda count=count: count in reload.send(door.admin, "show table sources"))
        assert is_refused(door, door.settings.http_port)
        assert is_refused(door, door.settings.grpc_port)
        door.serve.gate.set()
        assert door.http.get("/classify").status_code == 200


def test_one_address_has_half_of_the_requests_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection of HTTP/2 carries many: the unfinished messages of each are in a buffer."""
    monkeypatch.setattr(haproxy, "MAX_CONNECTIONS", 8)
    with opened(Serve(), ready=False) as door:
        with connected(door, door.settings.grpc_port, "127.0.0.2") as many:
            many.sendall(call(HEALTH) + message(100, 10))
            for stream in (3, 5, 7):
                many.sendall(head(HEALTH, stream) + message(100, 10, stream))
            wait_until(lambda: "conn_cur=4" in reload.send(door.admin, "show table requests"))
            many.sendall(head(HEALTH, 9))
            assert b"this address has 4 requests in flight" in answer_of(many)
        assert door.call(EMBED) == b""


def test_callers_without_a_key_leave_requests_of_their_address_to_those_with_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(haproxy, "MAX_CONNECTIONS", 32)
    keys = tmp_path / "keys.map"
    keys.write_text(f"{digest('k' * 30)} ann read ann 0 0\n")
    with (
        opened(Serve(), ready=False, api_keys_file=keys) as door,
        connected(door, door.settings.grpc_port) as many,
    ):
        many.sendall(call(HEALTH) + message(100, 10) + head(HEALTH, 3) + message(100, 10, 3))
        wait_until(lambda: "conn_cur=2" in reload.send(door.admin, "show table keyless"))
        many.sendall(head(HEALTH, 5))
        assert b"this address has 2 requests in flight" in answer_of(many)
        assert door.call(EMBED, ("x-api-key", "k" * 30)) == b""


def test_a_network_of_ipv6_is_one_address() -> None:
    """A host has as many addresses as it likes below the first 64 bits."""
    with opened(Serve(), host="::1") as door:
        for table in ("sources", "requests"):
            if table == "requests":
                door.call(EMBED)
            assert "key=:: " in reload.send(door.admin, f"show table {table}")


def test_a_long_question_about_health_is_refused_before_it_arrives(hasty: Door) -> None:
    """It needs no key, and Health/Watch has no deadline."""
    for path in (HEALTH, "/grpc.health.v1.Health/Watch"):
        with connected(hasty, hasty.settings.grpc_port) as asking:
            asking.sendall(call(path) + message(10**6, haproxy.BUFFER_BYTES + 1000))
            assert b"a health check may have at most 65536 bytes" in answer_of(asking)
    assert not hasty.serve.requests


def test_where_few_files_may_be_open_there_are_fewer_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for most, connections in ((1024, 462), (resource.RLIM_INFINITY, haproxy.MAX_CONNECTIONS)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, most=most: (100, most))
        found = haproxy.variables(Settings(inner_http_port=1, inner_grpc_port=2))
        assert found["SAMCLIP_MAX_CONNECTIONS"] == str(connections)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_request_to_upgrade_is_answered_without_one(method: str) -> None:
    serve = answering()
    with opened(serve, ready=False) as door, connected(door, door.settings.http_port) as asking:
        asking.sendall(
            f"{method} /classify HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\n"
            "upgrade: websocket\r\nsec-websocket-version: 13\r\ncontent-length: 2\r\n"
            "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n{}".encode()
        )
        assert asking.recv(1000).split()[1] == b"200"
    ((_, headers),) = serve.requests
    assert "upgrade" not in headers


def test_a_reply_that_nobody_reads_is_cut() -> None:
    serve = answering(answer=(200, "application/json", "0" * 30_000_000))
    with (
        opened(serve, ready=False, request_timeout_s=0.5) as door,
        connected(door, door.settings.http_port) as idle,
    ):
        idle.sendall(b"GET /classify HTTP/1.1\r\nhost: localhost\r\n\r\n")
        wait_until(lambda: bool(serve.requests))
        wait_until(lambda: "conn_cur=0" in reload.send(door.admin, "show table sources"))
        assert len(read_all(idle)) < 30_000_000


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    """A front door that waits a second for messages and answers."""
    monkeypatch.setattr(haproxy, "PACE", Pace(most_s=1))
    with opened(Serve(), request_timeout_s=0.5) as door:
        yield door


def test_a_small_message_that_does_not_arrive_never_reaches_serve(hasty: Door) -> None:
    with connected(hasty, hasty.settings.grpc_port) as slow:
        slow.sendall(call(EMBED) + message(100, 10))
        assert b"the message did not arrive in time" in answer_of(slow)
    assert not hasty.serve.requests


def test_a_large_message_that_does_not_arrive_ends_at_the_deadline(hasty: Door) -> None:
    with connected(hasty, hasty.settings.grpc_port) as slow:
        slow.sendall(call(EMBED) + message(10**6, haproxy.BUFFER_BYTES + 1000))
        assert [kind for kind, _ in _until_end(slow)][-1] in (HEADERS, RESET)


def test_an_answer_that_nobody_reads_ends_at_the_deadline(hasty: Door) -> None:
    """Without WINDOW_UPDATE, the caller takes 65,535 bytes of the answer."""
    with connected(hasty, hasty.settings.grpc_port) as idle:
        idle.sendall(call(EMBED) + message(4 * 10**6, 4 * 10**6))
        wait_until(lambda: bool(hasty.serve.requests))
        assert hasty.serve.ended.wait(50)


def answer_of(connection: socket.socket) -> bytes:
    """Return the heads of the first call that ends."""
    return b"".join(payload for kind, payload in _until_end(connection) if kind == HEADERS)


def _until_end(connection: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Yield frames up to the status of the call or its reset."""
    heads = 0
    for kind, payload in frames(connection):
        yield kind, payload
        heads += kind == HEADERS
        if kind == RESET or (kind == HEADERS and (heads == 2 or b"grpc-status" in payload)):
            return


@pytest.mark.parametrize(("size", "told"), [(100, None), (100_000, "100000")])
def test_serve_is_told_the_size_of_a_message_that_has_not_arrived(
    door: Door, size: int, told: str | None
) -> None:
    claimed = ((inner_ports.MESSAGE_BYTES, "1"),)
    embed = door.channel.unary_unary(EMBED)
    assert embed(bytes(size), metadata=claimed, timeout=20) == bytes(size)
    ((_, headers),) = door.serve.requests
    assert headers.get(inner_ports.MESSAGE_BYTES) == told
