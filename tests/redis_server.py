"""A real Redis on a free port of this machine, which a test may stop, freeze and start again."""

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

from services.instance import free_port

START_S = 60


@dataclass
class RedisServer:
    """``redis-server`` with ``options`` like ``("--maxmemory", "8mb")``; it keeps nothing on disk."""

    directory: Path
    options: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, empty, at the same port as before."""
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--dir", str(self.directory), *self.options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + START_S
        while True:
            try:
                with redis.Redis(port=self.port) as client:
                    client.ping()
            except redis.AuthenticationError:
                return  # it answers, and wants a password
            except redis.ConnectionError:
                assert self.process.poll() is None, "redis-server ended at once"
                assert time.monotonic() < deadline, "redis-server does not answer"
                time.sleep(0.02)
            else:
                return

    def kill(self) -> None:
        """End it at once, as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """It keeps its connections and answers nothing."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)


@contextmanager
def running(directory: Path, *options: str) -> Iterator[RedisServer]:
    """A started server; the test skips where no redis-server is installed, but never in CI."""
    if shutil.which("redis-server") is None and "CI" not in os.environ:
        pytest.skip("no redis-server: install Debian's package of that name")
    server = RedisServer(directory, options)
    server.start()
    try:
        yield server
    finally:
        server.kill()
