"""Measures for a short start and low memory: few processes, and forked workers."""

import base64
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import pytest

from services.request.routes import SERVICES
from tests.checkout import ROOT, sources
from tests.e2e.conftest import Service

pytestmark = pytest.mark.e2e

SERVES_OWN = ("ServeController", "ProxyActor", "HAProxyManager")


def command(process: int) -> str:
    return Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ").strip()


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def workers(service: Service) -> dict[str, int]:
    """Return processes by Ray's title, such as ``ServeReplica:gateway:gateway``."""
    commands = {process: command(process) for process in service.processes()}
    return {
        title.removeprefix("ray::").split(".")[0]: process
        for process, title in commands.items()
        if title.startswith("ray::") and "Agent" not in title
    }


def has_torch(process: int) -> bool:
    return "libtorch" in Path(f"/proc/{process}/maps").read_text()


def test_every_worker_is_a_fork_and_none_is_idle(service: Service) -> None:
    found = workers(service)
    replicas = {f"ServeReplica:{name}:{name}" for name in (*SERVICES.values(), "gateway")}
    assert found.keys() == {*SERVES_OWN, *replicas}
    parents = {parent(process) for process in found.values()}
    assert len(parents) == 1
    assert "services.launch.fork_server" in command(parents.pop())


def test_no_process_has_loaded_torch_where_openvino_runs_the_graphs(
    service: Service, http: httpx.Client, photo: bytes
) -> None:
    backbone = http.get("/readyz").json()["services"]["backbone"]
    if backbone["engine"]["name"] != "openvino":
        pytest.skip("this checkpoint has no graphs")
    body = {"image": base64.b64encode(photo).decode(), "labels": ["a cat", "a dog"]}
    for path in ("/classify", "/semantic"):
        assert http.post(path, json=body).is_success
    body = {"image": body["image"], "prompts": [{"points": [{"x": 200, "y": 150}]}]}
    assert http.post("/segment", json=body).is_success
    assert not [command(process) for process in service.processes() if has_torch(process)]


def test_ray_adds_no_current_directory_to_the_path_of_its_workers(tmp_path: Path) -> None:
    code = (
        "import sys; from services.launch import serve; serve._start_ray(sys.argv[1]); import ray\n"
        "print(ray.get(ray.remote(lambda: sys.path).remote()))"
    )
    environment = {**os.environ, "PYTHONPATH": sources()}
    with tempfile.TemporaryDirectory() as short:  # socket paths have at most 107 characters
        run = subprocess.run(
            [sys.executable, "-P", "-c", code, short],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
    assert repr(str(ROOT)) in run.stdout, run.stderr
    assert repr(str(tmp_path)) not in run.stdout
