"""A service that records what it is asked, and a client of it."""

from collections.abc import Iterator

import pytest
import samclip

from tests.fake_server import FakeService, fake_server

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
