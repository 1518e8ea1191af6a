"""Small requests that were expensive: each function sends one kind, and counts its outcomes."""

import asyncio
import base64
import http.client
import json
import resource
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import httpx
import numpy as np

from tests import http2
from tests.e2e.conftest import Service
from tests.http2 import DATA, GOAWAY, HEADERS, PING, RESET, SETTINGS, WINDOW_UPDATE, call, frame
from tests.in_process import png

ATTACKER = "127.0.0.2"
HANG_S = 240
"""Limit of an attack: longer than every limit of the service on a busy machine."""
TIMEOUT_S = 10
"""Deadline of the requests whose replies nobody reads."""
CHUNK = bytes(250_000)
EMBED = "/samclip.v1.BackboneService/Embed"

Outcomes = Counter[str]
"""Statuses, or words for what became of a connection, with their numbers."""


@dataclass(frozen=True)
class Attack:
    """An attack, and the outcomes that are right, as the starts of statuses or words."""

    run: Callable[[Service], Outcomes]
    expected: tuple[str, ...] = ("2", "4", "504")


@cache
def large(side: int = 8000) -> bytes:
    """Return a PNG file of 64 megapixels."""
    return cv2.imencode(".png", np.zeros((side, side), np.uint8))[1].tobytes()


def text(image: bytes) -> str:
    return base64.b64encode(image).decode()


def packed(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def posts(
    service: Service, path: str, *bodies: bytes, kind: str = "application/json", **headers: str
) -> Outcomes:
    """Post all bodies at the same time, and count the statuses."""
    named = {"content-type": kind, **{name.replace("_", "-"): headers[name] for name in headers}}

    async def post(client: httpx.AsyncClient, body: bytes) -> str:
        try:
            async with client.stream("POST", path, content=body, headers=named) as reply:
                async for _ in reply.aiter_raw():
                    pass
        except httpx.TransportError as error:
            return type(error).__name__
        return str(reply.status_code)

    async def everyone() -> list[str]:
        transport = httpx.AsyncHTTPTransport(local_address=ATTACKER)
        async with httpx.AsyncClient(
            base_url=service.url, transport=transport, timeout=HANG_S
        ) as client:
            return await asyncio.gather(*(post(client, body) for body in bodies))

    return Counter(asyncio.run(everyone()))


CONFIG = (
    '<View><Image name="i" value="$i"/><RectangleLabels name="r" toName="i"><Label value="a"/>'
    '</RectangleLabels><BrushLabels name="b" toName="i"><Label value="a"/></BrushLabels></View>'
)


def brushes(service: Service) -> Outcomes:
    box = {"x": 10, "y": 10, "width": 50, "height": 50, "rectanglelabels": ["a"]}
    region = {"type": "rectanglelabels", "value": box}
    region |= {"original_width": 8000, "original_height": 8000}
    tasks = [{"data": {"i": f"data:image/png;base64,{text(large())}"}}] * 4
    body = {"tasks": tasks, "label_config": CONFIG, "params": {"context": {"result": [region]}}}
    return posts(service, "/adapters/label-studio/predict", packed(body))


def areas(service: Service) -> Outcomes:
    named = [f"label {number}" for number in range(600)]
    boxes = [
        {"box": {"x_min": 0, "y_min": 0, "x_max": 10, "y_max": 10 + n / 20}} for n in range(256)
    ]
    body = packed({"image": text(png()), "areas": boxes, "labels": named})
    return posts(service, "/classify", body, body)


FORM = "multipart/form-data; boundary=x"


def form() -> bytes:
    part = b'--x\r\nContent-Disposition: form-data; name="prompts"\r\n\r\n'
    return 4 * (part + b"[" + b'"",' * 150_000 + b"5]\r\n") + b"--x--\r\n"


def hasty(service: Service) -> Outcomes:
    return posts(service, "/segment", *[form()] * 4, kind=FORM, x_samclip_timeout="1S")


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), HANG_S, (ATTACKER, 0))


def head(path: str, length: int, *lines: str) -> bytes:
    named = [f"POST {path} HTTP/1.1", "host: localhost", "content-type: application/json", *lines]
    return "\r\n".join([*named, f"content-length: {length}", "", ""]).encode()


def status(connection: socket.socket, wait_s: float) -> str:
    """Return the status that arrives within a time, "cut" or "unanswered"."""
    connection.settimeout(wait_s)
    try:
        return connection.recv(1000).partition(b" ")[2][:3].decode() or "cut"
    except (TimeoutError, BlockingIOError):
        return "unanswered"
    except OSError:
        return "cut"


def heads(service: Service) -> Outcomes:
    """Open connections of one address with 60 kB of a head that does not end."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    content = head("/classify", 0)[:-2] + b"x-unfinished: " + b"a" * 60_000
    connections, outcomes = [], Outcomes()
    for _ in range(min(1100, most - 200)):
        try:
            connections.append(connected(service.http_port))
        except OSError:
            outcomes["cut"] += 1
            continue
        connections[-1].setblocking(False)
        with suppress(OSError):  # of a connection that was cut since
            connections[-1].send(content)
    time.sleep(2)
    for connection in connections:
        outcomes[status(connection, 0)] += 1
        connection.close()
    return outcomes


def bodies(service: Service) -> Outcomes:
    """Send bodies of 150 MB without their last byte."""
    size = 150_000_000

    def send() -> str:
        sent = 0
        with connected(service.http_port) as connection:
            with suppress(OSError):
                connection.sendall(head("/classify", size + 1))
                while sent < size:
                    connection.sendall(CHUNK)
                    sent += len(CHUNK)
            return status(connection, 2 if sent == size else 5)

    return at_once(4, send)


def at_once(number: int, send: Callable[[], str]) -> Outcomes:
    with ThreadPoolExecutor(number) as threads:
        return Counter(threads.map(lambda _: send(), range(number)))


def messages(service: Service) -> Outcomes:
    """Send gRPC messages without their last bytes; the caller keeps to the windows of HTTP/2."""
    return at_once(6, lambda: unfinished(service.grpc_port, 20_000_000, 5.0))


def unfinished(port: int, size: int, wait_s: float) -> str:
    windows, sent, deadline = {0: 65_535, 1: 65_535}, 0, time.monotonic() + wait_s
    with connected(port) as connection, connection.makefile("rb") as received:
        connection.settimeout(wait_s)
        connection.sendall(call(EMBED) + frame(DATA, 0, 1, b"\0" + struct.pack(">I", size)))
        windows = {stream: window - 5 for stream, window in windows.items()}
        try:
            while time.monotonic() < deadline:
                while sent < size - 1 and min(windows.values()) >= 16_000:
                    piece = bytes(min(16_000, size - 1 - sent))
                    connection.sendall(frame(DATA, 0, 1, piece))
                    windows = {stream: window - len(piece) for stream, window in windows.items()}
                    sent += len(piece)
                connection.settimeout(max(deadline - time.monotonic(), 0.01))
                kind, flags, stream, payload = http2.next_frame(received)
                if kind == WINDOW_UPDATE:
                    windows[stream] += int.from_bytes(payload, "big")
                elif kind == SETTINGS and not flags & 1:
                    windows[1] += http2.initial_window(payload) - 65_535
                    connection.sendall(frame(SETTINGS, 1, 0, b""))
                elif kind == PING and not flags & 1:
                    connection.sendall(frame(PING, 1, 0, payload))
                elif kind in (HEADERS, RESET, GOAWAY):
                    return "ended"
        except TimeoutError:
            return "held"
        except OSError:
            return "cut"
    return "held"


def unread(service: Service) -> Outcomes:
    """Ask for masks of 64 megapixels, and read nothing of the replies."""
    image = len(large()).to_bytes(4, "little") + large()
    tensors = [("image", "BYTES", [1], image), ("points", "FP32", [1, 2], bytes(8))]
    tensors.append(("point_labels", "INT32", [1], b"\1\0\0\0"))
    inputs = [
        {"name": name, "datatype": kind, "shape": shape}
        | {"parameters": {"binary_data_size": len(data)}}
        for name, kind, shape, data in tensors
    ]
    fields = packed({"inputs": inputs, "parameters": {"binary_data_output": True}})
    body = fields + b"".join(data for *_, data in tensors)
    lines = (f"inference-header-content-length: {len(fields)}", f"x-samclip-timeout: {TIMEOUT_S}S")
    start = head("/v2/models/segment/infer", len(body), *lines)
    return at_once(12, lambda: read_late(service.http_port, start + body))


def read_late(port: int, request: bytes) -> str:
    """Read a reply from 10 s after its deadline on; return its status, or "whole", or "cut"."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.bind((ATTACKER, 0))
        connection.settimeout(HANG_S)
        connection.connect(("127.0.0.1", port))
        connection.sendall(request)
        time.sleep(TIMEOUT_S + 10)
        reply = http.client.HTTPResponse(connection)
        try:
            reply.begin()
            while reply.read(2**20):
                pass
        except (OSError, http.client.HTTPException):
            return "cut"
        if reply.length:
            return "cut"
        return "whole" if reply.status == 200 else str(reply.status)


@cache
def upload() -> bytes:
    """Return a PNG file of 30 MB."""
    noise = np.random.default_rng(0).integers(0, 256, (3200, 3200, 3), np.uint8)
    return cv2.imencode(".png", noise, [cv2.IMWRITE_PNG_COMPRESSION, 0])[1].tobytes()


def uploads(service: Service) -> Outcomes:
    """Send tasks that name a large file of Label Studio, several times each."""
    tasks = [{"data": {"i": f"/data/upload/1/{number}.png"}} for number in range(4)]
    body = packed({"tasks": tasks, "label_config": CHOICES})
    return posts(service, "/adapters/label-studio/predict", *[body] * 6)


CHOICES = (
    '<View><Image name="i" value="$i"/><Choices name="c" toName="i"><Choice value="a"/></Choices>'
    "</View>"
)


def examples(service: Service) -> Outcomes:
    """Send prompts with an example each, in a photograph that is sent once."""
    with httpx.Client(base_url=service.url, timeout=HANG_S) as client:
        file = {"image": text(photograph())}
        key = client.post("/embed", json=file).raise_for_status().json()["image"]["key"]
    box = {"x_min": 20, "y_min": 20, "x_max": 220, "y_max": 220}
    prompts = [
        {"examples": [{"image": {"key": key}, "box": box | {"x_max": 60 + n}}]} for n in range(64)
    ]
    return posts(
        service, "/segment", packed({"image": {"key": key}, "prompts": prompts, "min_score": 0})
    )


@cache
def photograph() -> bytes:
    from skimage import data

    return cv2.imencode(".jpg", cv2.resize(data.chelsea(), (4000, 3000)))[1].tobytes()


ATTACKS = {
    "a brush of tasks of 64 megapixels": Attack(brushes),
    "256 areas × 600 labels": Attack(areas),
    "tensors of 64 MB that nobody reads": Attack(unread, ("cut", "408", "429", "504")),
    "requests for uploads of 30 MB": Attack(uploads, ("2", "429", "504")),
    "64 prompts with an example": Attack(examples),
    "unfinished bodies of 150 MB": Attack(bodies, ("4", "503", "cut", "unanswered")),
    "unfinished gRPC messages of 20 MB": Attack(messages, ("ended", "cut", "held")),
    "forms of 600,000 values, 4 callers with 1 s": Attack(hasty, ("400", "429", "504", "408")),
    "1,100 connections, 60 kB of head each": Attack(heads, ("408", "cut", "unanswered")),
}
