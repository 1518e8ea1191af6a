"""A service that records what it is asked, a client of it, and a small picture of one shade."""

import io
from collections.abc import Iterator

import pytest
import samclip
from PIL import Image

from tests.fake_server import FakeService, fake_server

WIDTH, HEIGHT = 30, 20
Server = tuple[FakeService, str]
"""A service that records what it is asked, and its address."""
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def server() -> Iterator[Server]:
    with fake_server() as running:
        yield running


@pytest.fixture
def service(server: Server) -> FakeService:
    return server[0]


@pytest.fixture
def client(server: Server) -> Iterator[samclip.Client]:
    with samclip.Client(server[1], timeout=20) as client:
        yield client


def png(shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (WIDTH, HEIGHT), shade).save(buffer, "PNG")
    return buffer.getvalue()
