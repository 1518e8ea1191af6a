"""The training job on a cluster of its own, submitted as the documents say."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from samclip_core.io import checkpoint
from samclip_core.model import SamClip
from tests.checkout import ROOT
from tests.ports import free_port

pytestmark = pytest.mark.slow

RAY = Path(sys.executable).with_name("ray")
SECONDS = 1800
"""Longest wait for the cluster and for the job, on a busy machine."""


@pytest.fixture
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
    head.terminate()  # with --block, it ends what it has started
    for process in psutil.wait_procs(started, timeout=30)[1]:
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            process.kill()


def wait_for(port: int, head: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the head node takes jobs."""
    end = time.monotonic() + SECONDS
    while head.poll() is None and time.monotonic() < end:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
            return
        time.sleep(0.5)
    pytest.fail(f"the head node took no connection: {log.read_text()[-3000:]}")


def submit(environment: dict[str, str], *job: str) -> subprocess.CompletedProcess[str]:
    """Submit a job with the files of this checkout, and wait until it has ended."""
    command = [RAY, "job", "submit", "--working-dir", ".", "--", *job]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS
    )


def test_a_submitted_job_trains_on_the_workers_of_the_cluster(
    cluster: dict[str, str], tmp_path: Path
):
    """Two of its stages; its photographs are those that the recipe draws."""
    out = tmp_path / "run"
    short = ("dtype=float32", "joint=null", "adaptation=null")  # CPUs differ in bfloat16's speed
    changes = [word for change in short for word in ("--set", change)]
    where = ["--out", str(out), "--workers", "1", "--threads", "1"]
    train = ["python", "-m", "training.train", "--recipe", "debug", *where, *changes]
    job = submit(cluster, *train)
    log = (tmp_path / "head.log").read_text()
    assert job.returncode == 0, job.stdout[-5000:] + job.stderr[-5000:] + log[-5000:]
    assert "succeeded" in job.stdout
    checkpoint.verify(out / "checkpoint")
    model = SamClip.load(out / "checkpoint")
    photograph = (out / "photographs/drawn/chelsea.jpg").read_bytes()
    assert model.classify(photograph, ["a cat", "a rocket"])[0].label == "a cat"

    other = cluster | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    refused = submit(other, "true")
    assert refused.returncode != 0
    shutil.rmtree(out)
