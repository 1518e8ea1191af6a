"""A real cluster of two nodes as in deploy/README.md, each in its own network namespace."""

import copy
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.checkout import ROOT, sources
from tests.e2e.conftest import processes_with

HEAD, WORKER = "10.77.0.1", "10.77.0.2"
SPACE = "samclip-worker"
BIN = Path(sys.executable).parent
PATIENCE_S = 300


def run(*command: str | Path, **options: Any) -> None:
    subprocess.run([str(part) for part in command], check=True, timeout=PATIENCE_S, **options)


def environment(directory: Path, secret: str) -> dict[str, str]:
    """Return the environment of a node as in deploy/README.md, with its own folders."""
    lines = (ROOT / "deploy/cluster.env").read_text().splitlines()
    common = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    directory.mkdir()
    (directory / "metrics").mkdir()
    own = {
        "CONFIG_FILE_LOC": "haproxy.cfg",
        "SOCKET_PATH": "admin.sock",
        "SERVER_STATE_BASE": ".",
        "SERVER_STATE_FILE": "server-state",
        "METRICS_SOCKET_PATH": "metrics.sock",
    }
    return (
        {k: v for k, v in os.environ.items() if not k.startswith("SAMCLIP_")}
        | common
        | {f"RAY_SERVE_HAPROXY_{name}": str(directory / path) for name, path in own.items()}
        | {
            "PYTHONPATH": sources(),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PROMETHEUS_MULTIPROC_DIR": str(directory / "metrics"),
            "SAMCLIP_FRONT_DOOR_SECRET": secret,
            "RAY_AUTH_TOKEN": secret * 2,
            "RAY_ADDRESS": f"{HEAD}:6380",
            "RAY_DASHBOARD_ADDRESS": "http://127.0.0.1:8265",
        }
    )


@dataclass
class Cluster:
    directory: Path
    config: dict[str, Any]
    head: dict[str, str]

    def deploy(self, directory: Path) -> None:
        """Run ``serve deploy`` with this checkpoint in user_config."""
        config = copy.deepcopy(self.config)
        for application in config["applications"]:
            for deployment in application["deployments"]:
                if "user_config" in deployment:
                    deployment["user_config"]["checkpoint"] = str(directory)
        file = self.directory / "serve_config.yaml"
        file.write_text(yaml.safe_dump(config))
        run(BIN / "serve", "deploy", file, env=self.head)

    def status(self) -> dict[str, Any]:
        output = subprocess.run(
            [BIN / "serve", "status"], env=self.head, check=True, capture_output=True, timeout=60
        ).stdout
        found: dict[str, Any] = yaml.safe_load(output)
        return found


def small(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the shipped configuration, reduced for two cores."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "deploy/serve_config.yaml").read_text())
    for application in config["applications"]:
        application["args"] = {**settings, "replica_cpus": 0.1}
        (deployment,) = application["deployments"]
        if "autoscaling_config" in deployment:
            deployment["autoscaling_config"]["max_replicas"] = 2
        if application["name"] in ("semantic", "retrieval"):  # not under load below
            deployment.pop("autoscaling_config", None)
            deployment["num_replicas"] = 1
    return config


@contextmanager
def nodes(directory: Path) -> Iterator[dict[str, str]]:
    """Start two nodes of Ray; yield the environment of the head."""
    secret = secrets.token_hex(16)
    head, worker = (environment(directory / name, secret) for name in ("h", "w"))
    head_network, worker_network = ["ip", "link"], ["ip", "-n", SPACE, "link"]
    run("ip", "netns", "add", SPACE)
    try:
        run(*head_network, "set", "lo", "up")
        run(*head_network, "add", "samclip0", "type", "veth", "peer", "samclip1", "netns", SPACE)
        run("ip", "address", "add", f"{HEAD}/24", "dev", "samclip0")
        run("ip", "-n", SPACE, "address", "add", f"{WORKER}/24", "dev", "samclip1")
        for command in ([*head_network, "set", "samclip0"], [*worker_network, "set", "samclip1"]):
            run(*command, "up")
        run(*worker_network, "set", "lo", "up")
        memory = ("--object-store-memory", "100000000", "--num-cpus", "8", "--disable-usage-stats")
        start = (BIN / "ray", "start", *memory)
        head_options = ("--head", "--port", "6380", "--dashboard-port", "8265")
        run(
            *start,
            *head_options,
            "--node-ip-address",
            HEAD,
            "--temp-dir",
            directory / "h",
            env=head,
        )
        run(
            *("ip", "netns", "exec", SPACE, *start, "--address", f"{HEAD}:6380"),
            *("--node-ip-address", WORKER, "--temp-dir", directory / "w"),
            env=worker,
        )
        yield head
    finally:
        kill(SPACE)
        for pid in processes_with(secret):  # `ray stop` would end every Ray on the machine
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        run("ip", "netns", "del", SPACE)


@contextmanager
def started(directory: Path, deployed: Path) -> Iterator[Cluster]:
    """Start both nodes and a front door, and deploy a checkpoint to them."""
    with nodes(directory) as head, ExitStack() as stack:
        settings = {"checkpoint": str(deployed), "index_dir": str(directory / "index")}
        found = Cluster(directory, small(settings), head)
        found.deploy(deployed)
        door = subprocess.Popen(
            [sys.executable, "-m", "samclip.cli", "front-door"],
            env=head | {"SAMCLIP_SERVE_HOST": HEAD},
        )
        stack.callback(door.wait, 60)
        stack.callback(door.terminate)
        wait_until_ready()
        yield found


def kill(space: str) -> None:
    """Kill all processes of a node at once, like a power failure."""
    pids = subprocess.run(["ip", "netns", "pids", space], check=True, capture_output=True).stdout
    for pid in map(int, pids.split()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def ready() -> dict[str, Any]:
    with suppress(httpx.HTTPError, ValueError):
        report: dict[str, Any] = httpx.get("http://127.0.0.1:8000/readyz", timeout=10).json()
        return report
    return {}


def wait_until_ready() -> None:
    deadline = time.monotonic() + PATIENCE_S
    while ready().get("ready") is not True:
        assert time.monotonic() < deadline, ready()
        time.sleep(0.5)


def recovered(status: dict[str, Any]) -> bool:
    applications: Sequence[dict[str, Any]] = status["applications"].values()
    return all(application["status"] == "RUNNING" for application in applications)
