"""A service beside other users of the machine."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import samclip

from tests.e2e.conftest import Service
from tests.in_process import png

pytestmark = pytest.mark.e2e

NOBODY = 65534
REACH = f"""
import os, socket, sys
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
for path in sys.stdin.read().split("\\0"):
    for right in (os.R_OK, os.W_OK, os.X_OK):
        if os.access(path, right):
            print(path)
    try:
        os.rename(path, path + ".taken")
        print("renamed", path)
    except OSError:
        pass
    line = socket.socket(socket.AF_UNIX)
    try:
        line.connect(path)
        print("connected to", path)
    except OSError:
        pass
"""
"""Script that prints each path which another user may read, write, enter, rename or connect to."""
ASK_RAY = """
import sys
from ray._raylet import GcsClient
print(GcsClient(address=sys.argv[1]).internal_kv_keys(b"", None, timeout=20))
"""


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
    reached = subprocess.run(
        [sys.executable, "-Ic", REACH],
        input="\0".join(map(str, paths)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert reached.stdout == ""
    assert {oct(path.stat().st_mode & 0o777) for path in index_dir.iterdir()} == {"0o600"}


def test_ray_answers_nobody_who_lacks_the_token_of_this_start(
    service: Service, tmp_path: Path
) -> None:
    gcs = next(p for p in service.processes() if psutil.Process(p).name() == "gcs_server")
    ports = {c.laddr.port for c in psutil.Process(gcs).net_connections() if c.status == "LISTEN"}

    def ask(token: str) -> list[str]:
        answers = []
        for port in ports:
            asked = subprocess.run(
                [sys.executable, "-c", ASK_RAY, f"127.0.0.1:{port}"],
                capture_output=True,
                text=True,
                env={"HOME": str(tmp_path), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
            )
            answers.append(asked.stdout)
        return answers

    assert any(ask(variable(service, "RAY_AUTH_TOKEN")))
    assert not any(ask("0" * 64))
