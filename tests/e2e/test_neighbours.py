"""A service beside other users of the machine."""

import os
from pathlib import Path

import psutil
import pytest
import samclip

from tests.e2e.conftest import Service
from tests.in_process import png
from tests.other_user import ray_answers, reached

pytestmark = pytest.mark.e2e


def variable(service: Service, name: str) -> str:
    """Return an environment variable of a child process of the service."""
    for pid in service.processes():
        found = psutil.Process(pid).environ().get(name)
        if found and pid != service.process.pid:
            return found
    raise LookupError(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_another_user_reaches_nothing_of_a_service(service: Service, index_dir: Path) -> None:
    with samclip.Client(service.address, timeout=300) as client:
        assert client.index("pets", {"cat": png()}).indexed == 1
    directory = Path(variable(service, "RAY_SERVE_HAPROXY_BINARY_PATH")).parent
    paths = [directory, *directory.rglob("*"), index_dir, *index_dir.rglob("*")]
    sockets = [path for path in paths if path.is_socket()]
    assert {"admin.sock", "door.sock", "raylet"} <= {path.name for path in sockets}
    assert reached(paths) == ""
    modes = {oct(path.stat().st_mode & 0o777) for path in index_dir.rglob("*") if path.is_file()}
    assert modes == {"0o600"}


def test_ray_answers_nobody_who_lacks_the_token_of_this_start(
    service: Service, tmp_path: Path
) -> None:
    gcs = next(p for p in service.processes() if psutil.Process(p).name() == "gcs_server")
    ports = {c.laddr.port for c in psutil.Process(gcs).net_connections() if c.status == "LISTEN"}

    def ask(token: str) -> list[str]:
        return [ray_answers(port, token, tmp_path) for port in ports]

    assert any(ask(variable(service, "RAY_AUTH_TOKEN")))
    assert not any(ask("0" * 64))
