"""A training that loses a node of its cluster, and gets another one later."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import pytest
from ray._private.node import Node
from ray.cluster_utils import Cluster

from tests import photographs
from tests.checkout import sources

pytestmark = pytest.mark.faults

STEPS = {"sam-teacher": 1, "head-probing": 1, "joint": 2}
NODE = {"num_cpus": 1}
START_TIMEOUT_S = 5
"""Ray Train's limit to start the workers, which it then tries again; 60 s without this setting."""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without CPUs, on which the training is started, and two nodes for a worker each.

    In its own folder, or other programs on this machine would take it for their Ray.
    """
    # A short path, for sockets. Ray's last processes may still write to it.
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        monkeypatch.setenv("RAY_worker_niceness", "0")  # as in ``small_ray``
        found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        for _ in range(2):
            found.add_node(**NODE)
        yield found
        for node in found.worker_nodes:
            with suppress(psutil.NoSuchProcess):  # others end with their node
                for process in processes(node):
                    process.kill()  # a silent one does not notice that its node ends
        found.shutdown()


def command(data: Path, out: Path, *more: str) -> list[str]:
    """Return a training in float32: CPUs differ in rounding and in the speed of bfloat16."""
    given = ["--recipe", "debug", "--data", str(data), "--out", str(out), "--threads", "1"]
    steps = (f"{stage.replace('-', '_')}.steps={count}" for stage, count in STEPS.items())
    changes = [f"--set={change}" for change in ("dtype=float32", "adaptation=null", *steps)]
    return [sys.executable, "-m", "training.train", *given, *changes, *more]


def wait_until(reached: Callable[[], bool], run: "subprocess.Popen[bytes]") -> None:
    while not reached():
        assert run.poll() is None, f"the run ended with exit code {run.returncode}"
        time.sleep(0.02)


def processes(node: Node) -> list[psutil.Process]:
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [raylet, *raylet.children(recursive=True)]


@contextmanager
def started(
    training: list[str], environment: dict[str, str], log: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a training that writes to ``log``; end it with the test, even if it waits for a node."""
    with (
        log.open("wb") as file,
        subprocess.Popen(training, env=environment, stdout=file, stderr=file) as run,
    ):
        try:
            yield run
        finally:
            run.kill()


@pytest.fixture(params=[signal.SIGKILL, signal.SIGSTOP], ids=["dead", "silent"])
def loss(request: pytest.FixtureRequest) -> signal.Signals:
    """How a node is lost: its connections are closed, or stay open and nobody answers."""
    found: signal.Signals = request.param
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    photographs.write_training_sets(root)
    return root


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    subprocess.run(command(data, out), check=True)
    return out


def test_a_training_goes_on_from_its_last_state_when_a_node_is_replaced(
    cluster: Cluster, loss: signal.Signals, data: Path, whole: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    environment = os.environ | {
        "PYTHONPATH": sources(),
        "RAY_ADDRESS": cluster.address,
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(START_TIMEOUT_S),
    }
    training = command(data, out, "--workers", "2")
    with started(training, environment, log) as run:
        wait_until((out / "states/joint.state.pt").exists, run)
        lost, _ = cluster.worker_nodes
        for process in processes(lost):
            process.send_signal(loss)
        wait_until(lambda: "worker group startup timed out" in log.read_text(), run)
        cluster.add_node(**NODE)
        run.wait()
    assert run.returncode == 0
    assert re.search(r"joint: +50%.* 1/2 \[00:00<\?", log.read_text())
    for stage, count in STEPS.items():
        one, two = (
            np.loadtxt(folder / f"states/{stage}.losses.tsv", skiprows=1, ndmin=2)
            for folder in (whole, out)
        )
        assert len(one) == len(two) == count
        np.testing.assert_allclose(two[:, :-1], one[:, :-1], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(two[:, -1], one[:, -1], rtol=1e-2)  # the gradient's norm
