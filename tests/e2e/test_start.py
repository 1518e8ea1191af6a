"""Measures for a short start and low memory: few processes, and forked workers."""

import base64
from pathlib import Path

import httpx
import pytest

from services.request.routes import SERVICES
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


def test_no_process_has_loaded_torch_where_graphs_run_without_it(
    service: Service, http: httpx.Client, photo: bytes
) -> None:
    backbone = http.get("/readyz").json()["services"]["backbone"]
    if backbone["engine"]["name"] == "torch":
        pytest.skip("this checkpoint has no graphs")
    body = {"image": base64.b64encode(photo).decode(), "labels": ["a cat", "a dog"]}
    for path in ("/classify", "/semantic"):
        assert http.post(path, json=body).is_success
    body = {"image": body["image"], "prompts": [{"points": [{"x": 200, "y": 150}]}]}
    assert http.post("/segment", json=body).is_success
    assert not [command(process) for process in service.processes() if has_torch(process)]


def test_workers_import_no_module_of_the_current_directory(
    service: Service, http: httpx.Client
) -> None:
    """Ray puts this directory on the path of its workers, unless it is told not to."""
    assert (Path(f"/proc/{service.process.pid}/cwd") / "openvino.py").exists()
    assert http.get("/readyz").json()["ready"]
