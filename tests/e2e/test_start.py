"""What keeps the start short and the memory small: few processes, and workers that are forks."""

from pathlib import Path

from services.routes import SERVICES
from tests.e2e.conftest import Service

SERVES_OWN = ("ServeController", "ProxyActor", "HAProxyManager")
WITHOUT_MODEL = ("classification", "retrieval", "gateway")


def command(process: int) -> str:
    return Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ").strip()


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def workers(service: Service) -> dict[str, int]:
    """Processes by what Ray calls them, such as ``ServeReplica:gateway:gateway``, no methods."""
    commands = {process: command(process) for process in service.processes()}
    return {
        title.removeprefix("ray::").split(".")[0]: process
        for process, title in commands.items()
        if title.startswith("ray::") and "Agent" not in title
    }


def test_every_worker_is_a_fork_and_none_is_idle(service: Service) -> None:
    found = workers(service)
    replicas = {f"ServeReplica:{name}:{name}" for name in (*SERVICES.values(), "gateway")}
    assert found.keys() == {*SERVES_OWN, *replicas}
    parents = {parent(process) for process in found.values()}
    assert len(parents) == 1
    assert "services.fork_server" in command(parents.pop())


def test_services_without_a_model_have_loaded_no_torch(service: Service) -> None:
    found = workers(service)
    for name in WITHOUT_MODEL:
        process = found[f"ServeReplica:{name}:{name}"]
        assert "libtorch" not in Path(f"/proc/{process}/maps").read_text()
