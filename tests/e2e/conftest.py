"""The real service, as a user starts it: one for the whole session, on ports of its own."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest

from samclip_core.errors import CheckpointError
from samclip_core.io import checkpoint
from services.request.admission import SECRET_VARIABLE
from tests.checkout import ROOT, sources
from tests.ports import free_port

START_S = (
    840  # a busy machine may need minutes for what takes seconds; see the timeout of the tests
)
STOP_S = 600


def processes_with(secret: str) -> list[int]:
    """All processes with this front-door secret in their environment."""
    marker = f"{SECRET_VARIABLE}={secret}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if marker in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:  # it ended meanwhile, or is not ours
            continue
    return found


@dataclass(frozen=True)
class Service:
    """A running ``samclip serve``."""

    process: subprocess.Popen[bytes]
    log: Path
    secret: str
    http_port: int
    grpc_port: int
    inner_http_port: int
    inner_grpc_port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def processes(self) -> list[int]:
        """All processes that it has brought into being: they have its secret."""
        return processes_with(self.secret)

    def stop(self) -> int:
        """Press Ctrl-C: a terminal tells the whole process group. Return the exit code.

        SIGTERM is for the launcher alone: Ray's own processes end by it too, before Serve has shut
        down, which then waits for them in vain.
        """
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(STOP_S)


def start(
    directory: Path,
    checkpoint_name: str,
    python: str = sys.executable,
    root: Path = ROOT,
    **settings: object,
) -> Service:
    """Start the service of the checkout at ``root``, and wait until it says that it is ready."""
    first_port = free_port(4)
    ports = range(first_port, first_port + 4)
    secret = secrets.token_hex(16)
    values = {
        "CHECKPOINT": checkpoint_name,
        "HTTP_PORT": ports[0],
        "GRPC_PORT": ports[1],
        "INNER_HTTP_PORT": ports[2],
        "INNER_GRPC_PORT": ports[3],
        "INDEX_DIR": directory / "index",
        "FRONT_DOOR_SECRET": secret,
        **settings,
    }
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SAMCLIP_")}
    environment |= {f"SAMCLIP_{name}": str(value) for name, value in values.items()}
    environment["PYTHONPATH"] = sources(root)
    log = directory / "service.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [python, "-m", "samclip.cli", "serve"],
            cwd=directory,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_S
    while "\nready in " not in log.read_text():  # nor "already in use"
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"the service did not start:\n{log.read_text()}")
        time.sleep(0.1)
    return Service(process, log, secret, *ports)


@pytest.fixture(scope="session")
def checkpoint_name(request: pytest.FixtureRequest) -> str:
    """SAMCLIP_CHECKPOINT, or the bundled checkpoint, or where there is none a random one."""
    name = os.environ.get("SAMCLIP_CHECKPOINT", "edge")
    try:
        return str(checkpoint.resolve(name))
    except CheckpointError:
        return str(request.getfixturevalue("tiny_checkpoint"))


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, checkpoint_name: str) -> Iterator[Service]:
    """One service for all tests that do not change it."""
    running = start(tmp_path_factory.mktemp("service"), checkpoint_name)
    yield running
    running.stop()


@contextmanager
def channel_to(service: Service) -> Iterator[grpc.Channel]:
    """A plain channel: no metadata, no headers."""
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(service.address, options=options) as opened:
        yield opened


@pytest.fixture
def channel(service: Service) -> Iterator[grpc.Channel]:
    with channel_to(service) as opened:
        yield opened


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=120) as opened:
        yield opened


@pytest.fixture(scope="session")
def photo() -> bytes:
    """A cat, as a JPEG file."""
    import io

    from PIL import Image
    from skimage import data

    file = io.BytesIO()
    Image.fromarray(data.chelsea()).save(file, "JPEG", quality=92)
    return file.getvalue()
