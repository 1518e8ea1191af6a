"""A peer's own environment, and its server while it is measured."""

import os
import signal
import site
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tests.bench import traffic
from tests.bench.bench import Bench
from tests.bench.peers.work import PATH
from tests.ports import free_port

START_S = 90
STOP_S = 3
SAME = 0.999  # cosine
MARK = "BENCH_PEER_PORT"


class Absent(Exception):
    """A peer that could not be installed or started."""


@dataclass(frozen=True)
class Peer:
    """``requirement`` None: what it needs is in the project's own environment."""

    name: str
    module: str
    requirement: str | None = None
    form: bool = False  # takes a form, instead of the bare file

    def python(self, folder: Path) -> str:
        """Of an environment that has the requirement, and everything that this one has.

        It is made where it is absent. Raises Absent.
        """
        if self.requirement is None:
            return sys.executable
        home = folder / self.module
        python = home / "bin" / "python"
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
def serving(peer: Peer, bench: Bench, folder: Path) -> Iterator[str]:
    """The address of its running server. Raises Absent."""
    port = str(free_port())
    what = {"BENCH_PEER_CHECKPOINT": str(bench.directory), "BENCH_PEER_DTYPE": bench.dtype}
    environment = os.environ | what | {MARK: port}
    command = [peer.python(folder), "-m", f"tests.bench.peers.{peer.module}"]
    log = folder / f"{peer.module}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        answer = _wait(peer, process, f"http://127.0.0.1:{port}{PATH}", log)
        check(peer.name, answer, bench.model.embed_image(traffic.known(0)))
        yield f"127.0.0.1:{port}"
    finally:
        _end(process, f"{MARK}={port}".encode())


def check(name: str, answer: Any, expected_D: np.ndarray) -> None:
    """Raise Absent unless an answer is that vector: then it has done the same work."""
    found = answer["embedding"] if isinstance(answer, dict) else answer
    found_D = np.asarray(found, float).ravel()
    if found_D.shape != expected_D.shape or found_D @ expected_D < SAME:
        raise Absent(f"{name} does something else: {str(answer)[:200]}")


def _wait(peer: Peer, process: subprocess.Popen[bytes], url: str, log: Path) -> Any:
    """Its first answer."""
    kind, body = (
        traffic.form(traffic.known(0), {}) if peer.form else ("image/jpeg", traffic.known(0))
    )
    deadline = time.monotonic() + START_S
    answer = ""
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            reply = httpx.post(url, content=body, headers={"content-type": kind}, timeout=60)
            if reply.is_success:
                return reply.json()
            answer = f"{reply.status_code} {reply.text[:200]}"
        time.sleep(0.5)
    told = log.read_text(errors="replace")[-1000:]
    raise Absent(f"{peer.name} does not answer: {answer or 'nothing'}; {told}")


def _end(process: subprocess.Popen[bytes], mark: bytes) -> None:
    """Whatever it has started has its mark."""
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in path.read_bytes().split(b"\0"):
                os.kill(int(path.parent.name), signal.SIGKILL)
    process.wait()
