"""Frames of HTTP/2, for callers that leave requests unfinished and replies unread."""

import socket
import struct
from collections.abc import Iterator
from typing import BinaryIO

DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def call(path: str, *more: tuple[str, str]) -> bytes:
    """Return the start of an HTTP/2 connection with the head of one call, without a deadline.

    ``more`` are headers.
    """
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    return preface + frame(SETTINGS, 0, 0, b"") + head(path, 1, *more)


def head(path: str, stream: int, *more: tuple[str, str]) -> bytes:
    pseudo = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
    ]
    named = [*pseudo, ("content-type", "application/grpc"), ("te", "trailers"), *more]
    fields = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in named
    )
    return frame(HEADERS, 4, stream, fields)


def message(size: int, sent: int, stream: int = 1) -> bytes:
    """Return the frames of the first bytes of a message of a given size."""
    content = b"\0" + struct.pack(">I", size) + bytes(sent)
    pieces = [content[at : at + 16_000] for at in range(0, len(content), 16_000)]
    return b"".join(
        frame(DATA, sent == size and piece is pieces[-1], stream, piece) for piece in pieces
    )


def next_frame(received: BinaryIO) -> tuple[int, int, int, bytes]:
    """Return the kind, flags, stream and payload of the next frame."""
    start = received.read(9)
    if len(start) < 9:
        raise ConnectionResetError
    payload = received.read(int.from_bytes(start[:3], "big"))
    return start[3], start[4], int.from_bytes(start[5:], "big"), payload


def frames(connection: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Yield the kind and payload of each frame."""
    with connection.makefile("rb") as received:
        while len(head := received.read(9)) == 9:
            yield head[3], received.read(int.from_bytes(head[:3], "big"))


def initial_window(payload: bytes) -> int:
    """Return the window of a stream in a frame of settings."""
    pairs = [struct.unpack(">HI", payload[at : at + 6]) for at in range(0, len(payload), 6)]
    return dict(pairs).get(4, 65_535)
