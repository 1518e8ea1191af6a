"""One service with its cache and collections in Redis, and the table of results."""

import resource
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from samclip_core import SamClip
from samclip_core.io import checkpoint
from tests import redis_server
from tests.e2e.conftest import Service, start
from tests.faults import relay
from tests.faults.load import PATIENT_S, Load, Pictures, Questions
from tests.faults.relay import Relay
from tests.faults.report import Report
from tests.redis_server import RedisServer

DESCRIPTORS = 40_000  # HAProxy takes half as many connections
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")

Loaded = Callable[..., AbstractAsyncContextManager[Load]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--table", type=Path, help="write the effect of each fault to this file")


@pytest.fixture(scope="package")
def report(pytestconfig: pytest.Config) -> Report:
    return Report("edge", pytestconfig.getoption("--table", default=None))


@pytest.fixture(scope="package")
def model() -> SamClip:
    return SamClip.load("edge", dtype="float32")


@pytest.fixture(scope="package")
def pictures(model: SamClip) -> Pictures:
    return Pictures(model)


@pytest.fixture(scope="package")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server.running(tmp_path_factory.mktemp("store"), *DURABLE) as server:
        yield server


@pytest.fixture(scope="package")
def line(store: RedisServer) -> Iterator[Relay]:
    """Run a relay between the service and Redis."""
    with relay.running(store.port) as running:
        yield running


@pytest.fixture(scope="package")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory of links to the bundled checkpoint, which a test may damage."""
    directory = tmp_path_factory.mktemp("checkpoint") / "edge"
    directory.mkdir()
    for file in checkpoint.resolve("edge").iterdir():
        (directory / file.name).symlink_to(file)
    return directory


@pytest.fixture(scope="package")
def descriptors() -> int:
    """Raise the limit of open files as far as this user may, and return it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (most, max(most, DESCRIPTORS)):
        with suppress(ValueError):  # only root may raise the hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


@pytest.fixture(scope="package")
def service(
    tmp_path_factory: pytest.TempPathFactory, weights: Path, line: Relay, descriptors: int
) -> Iterator[Service]:
    """Run one service for all faults; each test waits until the service has recovered."""
    running = serve(tmp_path_factory.mktemp("service"), weights, line.port)
    yield running
    running.stop()


def serve(directory: Path, weights: Path, redis_port: int) -> Service:
    """Start a service with Redis.

    Its heads have no in-memory cache, so that half of the requests reach Redis.
    """
    return start(
        directory,
        str(weights),
        REDIS_URL=f"redis://127.0.0.1:{redis_port}/0",
        REDIS_TIMEOUT_MS=1000,
        HEAD_CACHE_BYTES=0,
        DTYPE="float32",  # as in the library, whose answers it must give
        REQUEST_TIMEOUT_S=PATIENT_S,
    )


@pytest.fixture
def loaded(service: Service, pictures: Pictures, report: Report) -> Loaded:
    """Return a context manager that applies load during the named fault."""
    return partial(under_load, service, pictures, report)


@asynccontextmanager
async def under_load(
    service: Service,
    pictures: Pictures,
    report: Report,
    fault: str,
    backbone: bool = True,
    within_s: float = PATIENT_S,
) -> AsyncIterator[Load]:
    """Apply load, wait for recovery, record the results; no answer may be wrong, no write lost.

    Recovery is measured from the start, or from the last ``mark``, if the fault lasts.
    """
    name = f"c{secrets.token_hex(4)}"
    async with Load(Questions(service, pictures, name, backbone)) as load:
        yield load
        await load.recovered(within_s)
    report.add(fault, load)
    assert not load.wrong()
    assert not load.lost
