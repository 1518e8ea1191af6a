"""The real service, started as a user would start it, once per session on free ports."""

import io
import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from PIL import Image
from skimage import data

from samclip_core.errors import CheckpointError
from samclip_core.io import checkpoint
from services.request.calls import SECRET_VARIABLE
from tests.checkout import ROOT, sources
from tests.ports import free_port

START_S = 840  # a busy machine takes minutes; below the tests' timeout
STOP_S = 600


def processes_with(secret: str) -> list[int]:
    """Return the processes with this front-door secret in their environment."""
    marker = f"{SECRET_VARIABLE}={secret}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if marker in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:  # the process has ended, or belongs to another user
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
        """Return the service's processes, which share its secret."""
        return processes_with(self.secret)

    def lines(self, **fields: str) -> list[dict[str, Any]]:
        """Return the lines of the log after the greeting, all of them JSON, with these fields."""
        text = self.log.read_text().rpartition("\n")[0]
        found = map(json.loads, text.partition("Ctrl-C stops.\n")[2].splitlines())
        return [line for line in found if fields.items() <= line.items()]

    def replicas(self) -> set[int]:
        """Return the process ids of the replicas."""
        return {
            pid
            for pid in self.processes()
            if b"ServeReplica" in Path(f"/proc/{pid}/cmdline").read_bytes()
        }

    def stop(self) -> int:
        """Send SIGINT to the process group, as Ctrl-C does, and return the exit code.

        SIGTERM must go to the launcher only: it would end Ray's processes before Serve has shut
        down, and Serve would wait for them in vain.
        """
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(STOP_S)


def start(
    directory: Path,
    checkpoint_name: str,
    python: str = sys.executable,
    root: Path = ROOT,
    **settings: object,
) -> Service:
    """Start the service of the checkout at ``root``, and wait until it reports that it is ready.

    Its current directory has a module that must not be imported.
    """
    (directory / "openvino.py").write_text("raise ImportError('of the current directory')")
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
    """Return SAMCLIP_CHECKPOINT or the bundled checkpoint, or a random one if that is absent."""
    name = os.environ.get("SAMCLIP_CHECKPOINT", "edge")
    try:
        return str(checkpoint.resolve(name))
    except CheckpointError:
        return str(request.getfixturevalue("tiny_checkpoint"))


@pytest.fixture(scope="session")
def trained(checkpoint_name: str) -> None:
    """Skip tests that need a trained model if the checkpoint is random."""
    if Path(checkpoint_name).name.startswith("tiny"):
        pytest.skip("the checkpoint has random weights: set SAMCLIP_CHECKPOINT to a trained one")


@pytest.fixture(scope="session")
def index_dir() -> Iterator[Path]:
    """Make a folder of collections that others may read, as do the files that are in it.

    All users may enter the folder above it; pytest's folders are private.
    """
    with tempfile.TemporaryDirectory(prefix="samclip-test-", dir="/tmp") as above:
        folder = Path(above) / "index"
        folder.mkdir()
        for path in (folder.parent, folder):
            path.chmod(0o755)
        yield folder


@pytest.fixture(scope="session")
def service(
    tmp_path_factory: pytest.TempPathFactory, checkpoint_name: str, index_dir: Path
) -> Iterator[Service]:
    """Run one service for all tests that do not change it."""
    running = start(tmp_path_factory.mktemp("service"), checkpoint_name, INDEX_DIR=index_dir)
    yield running
    running.stop()


@pytest.fixture
def channel(service: Service) -> Iterator[grpc.Channel]:
    """Open a plain channel, without metadata."""
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(service.address, options=options) as opened:
        yield opened


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=120) as opened:
        yield opened


@pytest.fixture(scope="session")
def photo() -> bytes:
    """Return a JPEG photograph of a cat."""
    file = io.BytesIO()
    Image.fromarray(data.chelsea()).save(file, "JPEG", quality=92)
    return file.getvalue()


@pytest.fixture(scope="session")
def number() -> Iterator[int]:
    """Return seeds of images that no cache holds."""
    return itertools.count(secrets.randbits(32))
