"""A real Redis on a free local port, which a test may stop, freeze and restart."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis

from tests.ports import free_port

START_S = 60


@dataclass
class RedisServer:
    """A ``redis-server`` with ``options`` like ``("--maxmemory", "8mb")`` and no snapshots."""

    directory: Path
    options: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start the server on its port, and wait until it answers."""
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--dir", str(self.directory), *self.options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until_answering(self.port, self.process)

    def kill(self) -> None:
        """Kill the server, as in a crash."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """Stop the process: it keeps its connections but does not answer."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)


def wait_until_answering(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the server in ``process`` answers, if only to ask for a password."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            with redis.Redis(port=port) as client:
                client.ping()
        except redis.AuthenticationError:
            return
        except redis.ConnectionError:
            assert process.poll() is None, "redis-server exited at start"
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.02)
        else:
            return


@contextmanager
def running(directory: Path, *options: str) -> Iterator[RedisServer]:
    """Run a server; skip the test where redis-server is not installed, except in CI."""
    if shutil.which("redis-server") is None and "CI" not in os.environ:
        pytest.skip("redis-server is not installed: install Debian's package redis-server")
    server = RedisServer(directory, options)
    server.start()
    try:
        yield server
    finally:
        server.kill()
