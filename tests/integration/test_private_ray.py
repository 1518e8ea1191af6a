"""A Ray for one command: another user of the machine reaches nothing of it."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.checkout import sources
from tests.other_user import ray_answers, reached

BATCH = """
import sys
from services.lake.job import connected
with connected(1, 0.0):
    import ray
    path = ray.get(ray.remote(lambda: __import__("sys").path).remote())
    print("\\0".join(path), file=sys.__stdout__, flush=True)
    sys.stdin.read()
"""
"""A command that waits, after a worker has told its import path."""
STRICT = 0o077


@dataclass(frozen=True)
class Running:
    """The command, and all its processes."""

    command: subprocess.Popen[str]
    home: Path
    path: list[str]

    def processes(self) -> list[psutil.Process]:
        mine = psutil.Process(self.command.pid)
        return [mine, *mine.children(recursive=True)]

    def folder(self) -> Path:
        """Return the parent of Ray's folder.

        GCS tells it: a worker that has renamed itself has overwritten its environment.
        """
        return Path(self.gcs().environ()["RAY_TMPDIR"])

    def gcs(self) -> psutil.Process:
        return next(process for process in self.processes() if process.name() == "gcs_server")


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """Return a folder that every user may enter, as homes and /tmp are."""
    with tempfile.TemporaryDirectory(dir="/tmp") as made:
        Path(made).chmod(0o755)
        yield Path(made)


def start(home: Path, **more: str) -> Running:
    folders = {"HOME": str(home / "h"), "TMPDIR": str(home / "t")}  # short, for sockets
    for folder in folders.values():
        Path(folder).mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | folders | {"PYTHONPATH": sources(), **more}
    (home / "samclip").mkdir(exist_ok=True)  # as a clone is called
    command = subprocess.Popen(
        [sys.executable, "-c", BATCH],
        cwd=home,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        umask=0,
    )
    assert command.stdout is not None
    return Running(command, home, command.stdout.readline().strip("\n").split("\0"))


@pytest.fixture(scope="module")
def running(home: Path) -> Iterator[Running]:
    made = start(home)
    folder = made.folder()
    yield made
    made.command.communicate(timeout=300)
    assert made.command.returncode == 0
    assert not folder.exists()


def opened(running: Running) -> set[Path]:
    """Return the files below / that the processes have open, those that are deleted left out."""
    found = set()
    for process in running.processes():
        for link in Path(f"/proc/{process.pid}/fd").iterdir():
            with suppress(OSError):
                found.add(link.readlink())
    return {path for path in found if path.is_absolute() and path.exists()}


def private(running: Running) -> set[Path]:
    """Return what the command has made: all that lies in its folders, and what it has open."""
    ours = {path for path in running.home.rglob("*") if path != running.home / "samclip"}
    ours -= {running.home / "h", running.home / "t"}
    shared = ("/dev/null", "/dev/urandom", "/dev/random", "/dev/pts", "/proc", "/sys", sys.prefix)
    return ours | {path for path in opened(running) if not str(path).startswith(shared)}


def test_what_it_makes_is_in_one_folder_that_its_user_alone_enters(running: Running) -> None:
    folder = running.folder()
    assert [*(running.home / "t").iterdir()] == [folder]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in folder.iterdir()} == {"ray"}
    assert not [*(running.home / "h").iterdir()]
    sockets = {path.name for path in folder.rglob("*") if path.is_socket()}
    assert sockets >= {"raylet", "plasma_store"}
    outside = {path for path in private(running) if folder not in (path, *path.parents)}
    assert not {path for path in outside if path.stat().st_mode & STRICT}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_another_user_reaches_nothing_of_it(running: Running) -> None:
    paths = private(running)
    assert len(paths) > 50
    assert reached(paths) == ""


def listening(running: Running) -> set[tuple[str, int]]:
    return {
        (line.laddr.ip, line.laddr.port)
        for process in running.processes()
        for line in process.net_connections("inet")
        if line.status == psutil.CONN_LISTEN or line.type == socket.SOCK_DGRAM
    }


def test_it_listens_on_the_loopback_interface_alone(running: Running) -> None:
    addresses = {ip.removeprefix("::ffff:") for ip, _ in listening(running)}
    assert addresses
    assert addresses <= {"127.0.0.1", "::1"}


def test_it_answers_nobody_without_its_token(running: Running) -> None:
    gcs = running.gcs()
    token = gcs.environ()["RAY_AUTH_TOKEN"]
    ports = [line.laddr.port for line in gcs.net_connections() if line.status == "LISTEN"]
    assert any(ray_answers(port, token, running.home) for port in ports)
    assert not any(ray_answers(port, "0" * 64, running.home) for port in ports)
    for process in running.processes():
        assert token not in " ".join(process.cmdline())
    logs = (path for path in running.home.rglob("*") if path.is_file())
    assert not [path for path in logs if token.encode() in path.read_bytes()]


def test_its_workers_import_nothing_from_the_current_folder(running: Running) -> None:
    assert sources().split(os.pathsep)[0] in running.path
    assert not {"", ".", str(running.home), str(running.home.resolve())} & {*running.path}


# Ray's agents wait a minute for the server that was killed with the command.
KILLED = pytest.param(signal.SIGKILL, marks=pytest.mark.slow)


@pytest.mark.parametrize("how", [KILLED, signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_ended_leaves_no_process_and_no_other_command_notices(
    running: Running, home: Path, how: signal.Signals
) -> None:
    second = start(home)
    assert second.folder() != running.folder()
    assert second.path == running.path
    processes = second.processes()
    second.command.send_signal(how)
    second.command.communicate(timeout=300)
    _, alive = psutil.wait_procs(processes, timeout=120)
    assert not [process.name() for process in alive]
    assert running.command.poll() is None
