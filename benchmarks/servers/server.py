"""A peer's environment, and its server during a measurement."""

import os
import signal
import site
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx

from benchmarks import traffic
from benchmarks.bench import Bench
from benchmarks.servers.work import PATH
from tests.ports import free_port

START_S = 90
TOLERANCE = 0.05
"""Largest difference of two scores from the same model, in two precisions."""


class Absent(Exception):
    """A peer cannot be installed or started, or its answers differ from ours."""


@dataclass(frozen=True)
class Peer:
    """A server to compare with; if ``requirement`` is None, our environment has its packages."""

    name: str
    module: str
    requirement: str | None = None
    takes: Literal["form", "bytes"] = "bytes"

    def python(self, folder: Path) -> str:
        """Return the interpreter of an environment with the requirement and our own packages.

        Creates the environment if it is absent. Raises Absent if the installation fails.
        """
        if self.requirement is None:
            return sys.executable
        home = folder / self.module
        python = home / "bin/python"
        if not (home / "complete").exists():
            venv.create(home, with_pip=True, clear=True)
            (packages,) = home.glob("lib/python*/site-packages")
            (packages / "ours.pth").write_text("\n".join(site.getsitepackages()))
            command = [python, "-m", "pip", "install", "--quiet", self.requirement]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise Absent(f"{self.name} could not be installed: {done.stderr[-500:]}")
            (home / "complete").touch()
        return str(python)


@contextmanager
def serving(peer: Peer, work: str, bench: Bench, scores: Mapping[str, float]) -> Iterator[str]:
    """Run a peer's server and yield its address. Raises Absent if it fails or answers wrongly.

    ``work`` is a version of ``work.py``; ``scores`` are our service's for photograph 0.
    """
    folder = (bench.out / "peers").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    given = {"CHECKPOINT": bench.directory, "DTYPE": bench.dtype, "WORK": work, "PORT": port}
    environment = os.environ | {f"BENCH_PEER_{name}": str(value) for name, value in given.items()}
    command = [peer.python(folder), "-m", f"benchmarks.servers.{peer.module}"]
    log = folder / f"{peer.module}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        answer = _wait(peer, process, f"http://127.0.0.1:{port}{PATH}", log)
        check(peer.name, answer["scores"], scores)
        yield f"127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and all of its workers
        process.wait()


def check(name: str, scores: Mapping[str, float], expected: Mapping[str, float]) -> None:
    """Raise Absent unless a peer's labels and scores match ours."""
    if scores.keys() != expected.keys() or any(
        abs(scores[label] - expected[label]) > TOLERANCE for label in expected
    ):
        raise Absent(f"{name} answers {dict(scores)}, expected {dict(expected)}")


def _wait(peer: Peer, process: subprocess.Popen[bytes], url: str, log: Path) -> Any:
    """Wait for the first answer and return it. Raises Absent."""
    ask = traffic.Ask("classify", traffic.photograph(0))
    kind, body = traffic.to_peer(ask, peer.takes == "form")
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            reply = httpx.post(url, content=body, headers={"content-type": kind}, timeout=60)
            if reply.is_success:
                return reply.json()
        time.sleep(0.5)
    raise Absent(f"{peer.name} does not answer: {log.read_text(errors='replace')[-1000:]}")
