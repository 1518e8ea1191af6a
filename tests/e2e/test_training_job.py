"""A training from its submission to the first answer of what it has made.

It is a job on a cluster of its own, submitted as the documents say.
"""

import base64
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from samclip_core.io import checkpoint
from tests.checkout import ROOT
from tests.e2e.conftest import start
from tests.ports import free_port
from training.recipes import STAGES

pytestmark = pytest.mark.slow

RAY = Path(sys.executable).with_name("ray")
SECONDS = 1800
"""Longest wait for the cluster and for the job, on a busy machine."""


@contextmanager
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Start a head node on loopback, as an operator does; return the environment of its users."""
    ports = free_port(5)
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RAY_") and name != "SAMCLIP_DATA"
    }
    environment = inherited | {
        "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{ports}",
        # Ray's mode for a single machine, in which its servers listen on the loopback interface.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Prometheus servers, which would listen on all interfaces.
        "RAY_enable_metrics_collection": "0",
        "AUTOSCALER_METRIC_PORT": "-1",
        "DASHBOARD_METRIC_PORT": "-1",
        "RAY_worker_niceness": "0",  # nice workers never start on a busy machine
        "RAY_worker_register_timeout_seconds": "300",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    }
    options = {
        "node-ip-address": "127.0.0.1",
        "dashboard-host": "127.0.0.1",
        "dashboard-port": ports,
        "port": ports + 1,
        "dashboard-agent-listen-port": ports + 2,
        "dashboard-agent-grpc-port": ports + 3,
        "metrics-export-port": ports + 4,
        "num-cpus": 2,
        "object-store-memory": 100 * 2**20,
    }
    # The paths of its sockets are limited to 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        given = [f"--{name}={value}" for name, value in options.items()]
        command = [RAY, "start", "--head", "--block", f"--temp-dir={folder}", *given]
        command.append("--disable-usage-stats")
        with (
            (tmp_path / "head.log").open("w") as log,
            subprocess.Popen(command, env=environment, stdout=log, stderr=log) as head,
        ):
            try:
                wait_for(ports, head, tmp_path / "head.log")
                yield environment
            finally:
                end(head)


def end(head: subprocess.Popen[bytes]) -> None:
    """End a head node, and what it leaves."""
    started = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
    head.terminate()  # with --block, it ends most of what it has started
    for process in psutil.wait_procs(started, timeout=5)[1]:
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            process.kill()


def wait_for(ports: int, head: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the head node takes jobs: its dashboard and the agent that starts them listen."""
    end = time.monotonic() + SECONDS
    waiting = [ports, ports + 2]
    while waiting and head.poll() is None and time.monotonic() < end:
        with suppress(OSError), socket.create_connection(("127.0.0.1", waiting[0]), timeout=5):
            del waiting[0]
            continue
        time.sleep(0.5)
    if waiting:
        pytest.fail(f"the head node took no connection: {log.read_text()[-3000:]}")


def submit(environment: dict[str, str], *job: str) -> subprocess.CompletedProcess[str]:
    """Submit a job with the files of this checkout, and wait until it has ended."""
    command = [RAY, "job", "submit", "--working-dir", ".", "--", *job]
    end = time.monotonic() + SECONDS
    while True:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS
        )
        # A head that listens may not know its agent yet; nothing has been submitted then.
        early = "No available agent" in done.stdout + done.stderr
        if not early or time.monotonic() > end:
            return done
        time.sleep(1)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Return the folder of a run of all stages; its photographs are those that debug draws."""
    out = tmp_path / "run"
    where = ["--out", str(out), "--workers", "1", "--threads", "1"]
    exact = ["--set", "dtype=float32"]  # CPUs differ in bfloat16's speed
    train = ["python", "-m", "training.train", "--recipe", "debug", *where, *exact]
    with cluster(tmp_path) as environment:
        job = submit(environment, *train)
        refused = submit(environment | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}, "true")
    log = (tmp_path / "head.log").read_text()
    assert job.returncode == 0, job.stdout[-5000:] + job.stderr[-5000:] + log[-5000:]
    assert "succeeded" in job.stdout
    assert refused.returncode != 0
    return out


def test_a_submitted_job_trains_a_checkpoint_that_a_service_serves(trained: Path, tmp_path: Path):
    stages = [path.name.partition(".")[0] for path in (trained / "states").glob("*.state.pt")]
    assert sorted(stages) == sorted(STAGES)
    checkpoint.verify(trained / "checkpoint")
    service = start(tmp_path, str(trained / "checkpoint"))
    try:
        photograph = (trained / "photographs/drawn/chelsea.jpg").read_bytes()
        body = {"image": base64.b64encode(photograph).decode(), "labels": ["a cat", "a rocket"]}
        answer = httpx.post(
            f"{service.url}/classify", json=body, timeout=SECONDS
        ).raise_for_status()
        assert answer.json()["results"][0]["label"] == "a cat"
    finally:
        assert service.stop() == 0
