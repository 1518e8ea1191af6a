"""Small requests that were expensive: each returns the bytes that it sent, and its outcomes.

``full`` is the size of the attack as it was found; the other size fits into a test suite.
"""

import asyncio
import base64
import http.client
import json
import resource
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable
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
SILENT_S = 25
"""Seconds after which a request without an answer counts as unanswered."""
CHUNK = bytes(250_000)
EMBED = "/samclip.v1.BackboneService/Embed"

Found = tuple[int, Counter[str]]


@dataclass(frozen=True)
class Attack:
    """An attack, and the outcomes that are right, as the starts of statuses or words."""

    run: Callable[[Service, bool], Found]
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
    service: Service,
    path: str,
    bodies: Iterable[bytes],
    kind: str = "application/json",
    each: int = 1,
    **headers: str,
) -> Found:
    """Post each body at the same time, ``each`` times in a row, and count the statuses."""
    named = {"content-type": kind, **{name.replace("_", "-"): headers[name] for name in headers}}

    async def caller(client: httpx.AsyncClient, body: bytes) -> list[str]:
        return [await one(client, body) for _ in range(each)]

    async def one(client: httpx.AsyncClient, body: bytes) -> str:
        try:
            async with client.stream("POST", path, content=body, headers=named) as reply:
                async for _ in reply.aiter_raw():
                    pass
        except httpx.TransportError as error:
            return type(error).__name__
        return str(reply.status_code)

    async def everyone() -> list[list[str]]:
        transport = httpx.AsyncHTTPTransport(local_address=ATTACKER)
        async with httpx.AsyncClient(
            base_url=service.url, transport=transport, timeout=HANG_S
        ) as client:
            return await asyncio.gather(*(caller(client, body) for body in sent))

    sent = list(bodies)
    outcomes = asyncio.run(everyone())
    return each * sum(map(len, sent)), Counter(code for codes in outcomes for code in codes)


CONFIG = (
    '<View><Image name="i" value="$i"/><RectangleLabels name="r" toName="i"><Label value="a"/>'
    '</RectangleLabels><BrushLabels name="b" toName="i"><Label value="a"/></BrushLabels></View>'
)


def label_studio(image: bytes, side: int, tasks: int, regions: int) -> bytes:
    box = {"x": 10, "y": 10, "width": 50, "height": 50, "rectanglelabels": ["a"]}
    region = {"type": "rectanglelabels", "value": box}
    region |= {"original_width": side, "original_height": side}
    return packed(
        {
            "tasks": [{"data": {"i": f"data:image/png;base64,{text(image)}"}}] * tasks,
            "label_config": CONFIG,
            "params": {"context": {"result": [region] * regions}},
        }
    )


def brushes(service: Service, full: bool) -> Found:
    body = label_studio(large(), 8000, 32 if full else 4, 1)
    return posts(service, "/adapters/label-studio/predict", [body])


def regions(service: Service, full: bool) -> Found:
    body = label_studio(png(), 40, 64, 85_000 if full else 20_000)
    return posts(service, "/adapters/label-studio/predict", [body] * 3)


def areas(service: Service, labels: int, callers: int, each: int) -> Found:
    named = [f"label {number}" for number in range(labels)]
    boxes = [
        {"box": {"x_min": 0, "y_min": 0, "x_max": 10, "y_max": 10 + n / 20}} for n in range(256)
    ]
    body = packed({"image": text(png()), "areas": boxes, "labels": named})
    return posts(service, "/classify", [body] * callers, each=each)


def outputs(service: Service, full: bool) -> Found:
    inputs = [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}]
    named = [{"name": "embedding"}] * (300_000 if full else 100_000)
    body = packed({"inputs": inputs, "outputs": named})
    return posts(service, "/v2/models/embed-text/infer", [body])


def points(count: int) -> list[dict[str, Any]]:
    return [{"points": [[n + 1, 1]]} for n in range(count)]


def bits(service: Service, full: bool) -> Found:
    prompts = points(40)
    body = packed({"image": text(large()), "prompts": prompts, "encoding": "PACKED_BITS"})
    return posts(service, "/segment", [body])


def misfit(service: Service, full: bool) -> Found:
    """Prompts that fit, and a last one that does not."""
    body = b'{"prompts":[' + b'"",' * (530_000 if full else 100_000) + b"5]}"
    return posts(service, "/segment", [body])


FORM = "multipart/form-data; boundary=x"


def form(values: int) -> bytes:
    part = b'--x\r\nContent-Disposition: form-data; name="prompts"\r\n\r\n'
    return 4 * (part + b"[" + b'"",' * (values // 4) + b"5]\r\n") + b"--x--\r\n"


def forms(service: Service, full: bool) -> Found:
    return posts(service, "/segment", [form(3_992_000 if full else 600_000)], FORM)


def hasty(service: Service, full: bool) -> Found:
    body = form(3_992_000 if full else 600_000)
    return posts(service, "/segment", [body] * 4, FORM, x_samclip_timeout="1S")


def nan(service: Service, full: bool) -> Found:
    body = b'{"id":NaN,"inputs":[{"name":"text","datatype":"BYTES","shape":[1],"data":["a"]}]}'
    return posts(service, "/v2/models/embed-text/infer", [body])


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


WEBSOCKET = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="


def upgrade(service: Service, full: bool) -> Found:
    body = packed({"labels": ["a"], "image": text(png())})
    lines = ("connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13", WEBSOCKET)
    with connected(service.http_port) as asking:
        asking.sendall(head("/classify", len(body), *lines) + body)
        return len(body), Counter([status(asking, SILENT_S)])


def heads(service: Service, full: bool) -> Found:
    """Connections of one address with 60 kB of a head that does not end."""
    wanted, (most, _) = 4500 if full else 1100, resource.getrlimit(resource.RLIMIT_NOFILE)
    content = head("/classify", 0)[:-2] + b"x-unfinished: " + b"a" * 60_000
    connections, outcomes, sent = [], Counter[str](), 0
    for _ in range(min(wanted, most - 200)):
        try:
            connections.append(connected(service.http_port))
        except OSError:
            outcomes["cut"] += 1
            continue
        connections[-1].setblocking(False)
        with suppress(OSError):  # of a connection that was cut since
            sent += connections[-1].send(content)
    time.sleep(2)
    for one in connections:
        outcome = status(one, 0)
        outcomes["held for 2 s" if outcome == "unanswered" else outcome] += 1
        one.close()
    return sent, outcomes


def bodies(service: Service, full: bool) -> Found:
    """Bodies of 150 MB without their last byte."""
    size, number, wait_s = 150_000_000, 12 if full else 4, 75 if full else 2

    def one(_: int) -> tuple[int, str]:
        sent = 0
        with connected(service.http_port) as connection:
            try:
                connection.sendall(head("/classify", size + 1))
                while sent < size:
                    connection.sendall(CHUNK)
                    sent += len(CHUNK)
            except OSError:
                wait = 5.0
            else:
                wait = wait_s
            return sent, status(connection, wait)

    return at_once(one, number)


def at_once(one: Callable[[int], tuple[int, str]], number: int) -> Found:
    with ThreadPoolExecutor(number) as threads:
        found = list(threads.map(one, range(number)))
    return sum(sent for sent, _ in found), Counter(outcome for _, outcome in found)


def messages(service: Service, full: bool) -> Found:
    """gRPC messages without their last bytes; the caller keeps to the windows of HTTP/2."""
    size, wait_s = (60_000_000, 75.0) if full else (20_000_000, 5.0)
    return at_once(lambda _: unfinished(service.grpc_port, size, wait_s), 6)


def unfinished(port: int, size: int, wait_s: float) -> tuple[int, str]:
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
                    return sent, "ended"
        except TimeoutError:
            return sent, "held"
        except OSError:
            return sent, "cut"
    return sent, "held"


def unread(service: Service, full: bool) -> Found:
    """Replies of 64 MB, of which nobody reads a byte until 10 s after the deadline."""
    number, timeout_s = (8, 30) if full else (2, 10)
    body = packed({"image": text(large()), "prompts": points(6), "encoding": "PACKED_BITS"})

    def one(_: int) -> tuple[int, str]:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.bind((ATTACKER, 0))
            connection.settimeout(HANG_S)
            connection.connect(("127.0.0.1", service.http_port))
            start = head("/segment", len(body), f"x-samclip-timeout: {timeout_s}S")
            connection.sendall(start + body)
            time.sleep(timeout_s + 10)
            return len(body), rest(connection)

    return at_once(one, number)


def unread_tensors(service: Service, full: bool) -> Found:
    """Masks of 64 megapixels over the Open Inference Protocol, of which nobody reads a byte."""
    number, timeout_s = (60, 30) if full else (12, 10)
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
    lines = (f"inference-header-content-length: {len(fields)}", f"x-samclip-timeout: {timeout_s}S")
    start = head("/v2/models/segment/infer", len(body), *lines)
    return at_once(lambda _: unread_by_one(service.http_port, start + body, timeout_s), number)


def unread_by_one(port: int, sent: bytes, timeout_s: float) -> tuple[int, str]:
    """Read nothing until 10 s after the deadline."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.bind((ATTACKER, 0))
        connection.settimeout(HANG_S)
        connection.connect(("127.0.0.1", port))
        connection.sendall(sent)
        time.sleep(timeout_s + 10)
        return len(sent), rest(connection)


@cache
def upload() -> bytes:
    """Return a PNG file of 30 MB."""
    noise = np.random.default_rng(0).integers(0, 256, (3200, 3200, 3), np.uint8)
    return cv2.imencode(".png", noise, [cv2.IMWRITE_PNG_COMPRESSION, 0])[1].tobytes()


def uploads(service: Service, full: bool) -> Found:
    """Tasks that name a large file of Label Studio, several times each."""
    tasks = [{"data": {"i": f"/data/upload/1/{n}.png"}} for n in (range(16) if full else range(4))]
    body = packed({"tasks": tasks, "label_config": CHOICES})
    return posts(service, "/adapters/label-studio/predict", [body] * 6)


CHOICES = (
    '<View><Image name="i" value="$i"/><Choices name="c" toName="i"><Choice value="a"/></Choices>'
    "</View>"
)


def examples(service: Service, full: bool) -> Found:
    """Prompts with an example each, in a photograph that is sent once."""
    number = 256 if full else 64
    with httpx.Client(base_url=service.url, timeout=HANG_S) as client:
        file = {"image": text(photograph())}
        key = client.post("/embed", json=file).raise_for_status().json()["image"]["key"]
    box = {"x_min": 20, "y_min": 20, "x_max": 220, "y_max": 220}
    prompts = [
        {"examples": [{"image": {"key": key}, "box": box | {"x_max": 60 + n}}]}
        for n in range(number)
    ]
    body = packed({"image": {"key": key}, "prompts": prompts, "min_score": 0})
    return posts(service, "/segment", [body])


@cache
def photograph() -> bytes:
    from skimage import data

    return cv2.imencode(".jpg", cv2.resize(data.chelsea(), (4000, 3000)))[1].tobytes()


def rest(connection: socket.socket) -> str:
    """Read a reply, and return its status; of a success, whether it is whole or was cut."""
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


ATTACKS = {
    "brush of 32 tasks of 64 megapixels": Attack(brushes),
    "3 callers, 13 MB of regions each": Attack(regions, ("400",)),
    "256 areas × 1,024 labels, 8 callers": Attack(
        lambda service, full: areas(service, 1024, 8, 3 if full else 1), ("400", "429")
    ),
    "256 areas × 600 labels, 8 callers": Attack(
        lambda service, full: areas(service, 600, 8 if full else 2, 1)
    ),
    "300,000 outputs": Attack(outputs, ("400",)),
    "replies of 64 MB that nobody reads": Attack(unread, ("cut", "408", "429", "504")),
    "60 tensors of 64 MB that nobody reads": Attack(unread_tensors, ("cut", "408", "429", "504")),
    "6 requests for uploads of 30 MB": Attack(uploads, ("2", "429", "504")),
    "256 prompts with an example": Attack(examples, ("2", "4", "504")),
    "12 unfinished bodies of 150 MB": Attack(bodies, ("4", "503", "cut", "unanswered")),
    "6 unfinished gRPC messages of 60 MB": Attack(messages, ("ended", "cut", "held")),
    "530,000 prompts, the last a number": Attack(misfit, ("400",)),
    "form of 3,992,000 values": Attack(forms, ("400",)),
    "the same, 4 callers with 1 s": Attack(hasty, ("400", "429", "504", "408")),
    "40 masks of 64 megapixels as PACKED_BITS": Attack(bits, ("400",)),
    "4,500 connections, 60 kB of head each": Attack(heads, ("408", "cut", "held for 2 s")),
    "POST with Upgrade: websocket": Attack(upgrade, ("2", "4")),
    "NaN as an id": Attack(nan, ("400",)),
}
