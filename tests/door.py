"""The real HAProxy with our configuration, in front of small servers in place of Serve."""

import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from select import select
from socket import MSG_PEEK, create_connection, socket
from typing import Any

import grpc
import httpx
import pytest

from services.front_door import haproxy, keys, reload
from services.settings import Settings
from tests.ports import free_port

SECRET = "sesame"
FIRST = keys.Key(keys.digest("first-key"), "ann", ("read", "index"), "acme")
SECOND = keys.Key(keys.digest("second, key"), "bob", ("read",), "-")
EMBED = "/samclip.v1.BackboneService/Embed"


@dataclass
class Serve:
    """A stand-in for Serve that records requests and returns configured answers."""

    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    answer: tuple[int, str, str] = (200, "application/json", "{}")
    grpc_answer: tuple[grpc.StatusCode, str] = (grpc.StatusCode.OK, "")
    gate: threading.Event = field(default_factory=threading.Event)
    hung_up: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    """A gRPC call has ended: its answer is taken, or its deadline has passed."""


def answering(**fields: Any) -> Serve:
    """Return a stand-in that answers at once."""
    serve = Serve(**fields)
    serve.gate.set()
    return serve


@dataclass(frozen=True)
class Door:
    """A running front door with its clients."""

    settings: Settings
    serve: Serve
    http: httpx.Client
    channel: grpc.Channel
    admin: Path
    process: subprocess.Popen[bytes]

    def call(self, path: str, *metadata: tuple[str, str]) -> bytes:
        method = self.channel.unary_unary(path)
        return bytes(method(b"", metadata=metadata, timeout=20))


def has_ended(connection: socket) -> bool:
    readable, _, _ = select([connection], [], [], 0)
    try:
        return bool(readable) and not connection.recv(1, MSG_PEEK)
    except ConnectionResetError:
        return True


@contextmanager
def http_server(serve: Serve) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            serve.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
            while not serve.gate.wait(0.05):
                if has_ended(self.connection):
                    serve.hung_up.set()
                    return
            code, kind, body = serve.answer
            self.send_response(code)
            if code == HTTPStatus.METHOD_NOT_ALLOWED:
                self.send_header("allow", "GET, HEAD")
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            with suppress(ConnectionError):  # the front door may have answered already
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
                context.add_callback(serve.ended.set)
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
        process = haproxy.start(settings, admin)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        channel = grpc.insecure_channel(f"{host}:{settings.grpc_port}")
        client = httpx.Client(base_url=f"http://{host}:{settings.http_port}", timeout=20)
        try:
            while not is_up(admin):
                assert process.poll() is None, "HAProxy does not accept its configuration"
                time.sleep(0.01)
            if ready:
                grpc.channel_ready_future(channel).result(timeout=20)
            yield Door(settings, serve, client, channel, admin, process)
        finally:
            serve.gate.set()
            channel.close()
            client.close()
            haproxy.stop(process)
            shutil.rmtree(admin.parent)


def connected(door: Door, port: int, address: str = "127.0.0.1") -> socket:
    """Connect to a port of the front door from an address of this machine."""
    connection = create_connection((door.settings.host, port), 20, (address, 0))
    connection.settimeout(60)
    return connection


def read_all(connection: socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def wait_until(happened: Callable[[], bool]) -> None:
    while not happened():
        time.sleep(0.01)


def logged(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Parse the JSON log lines of a front door that has stopped."""
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


def is_up(admin: Path) -> bool:
    try:
        return reload.send(admin, "show info").startswith("Name: HAProxy")
    except OSError:
        return False


def asked(door: Door, credentials: grpc.ChannelCredentials) -> bytes:
    address = f"localhost:{door.settings.grpc_port}"
    with grpc.secure_channel(address, credentials) as channel:
        method = channel.unary_unary(EMBED)
        return bytes(method(b"hello", timeout=20, wait_for_ready=False))
