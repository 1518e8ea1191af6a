"""A service that records what it is asked, and a client of it."""

from collections.abc import Iterator

import pytest
import samclip

from tests.fake_server import FakeService, fake_server


@pytest.fixture
def server() -> Iterator[tuple[FakeService, str]]:
    with fake_server() as running:
        yield running


@pytest.fixture
def service(server: tuple[FakeService, str]) -> FakeService:
    return server[0]


@pytest.fixture
def client(server: tuple[FakeService, str]) -> Iterator[samclip.Client]:
    with samclip.Client(server[1], timeout=20) as client:
        yield client
