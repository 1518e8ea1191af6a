"""Ray's workers are forks of one process that has imported their modules."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.launch import fork_server
from tests.checkout import ROOT, sources

WORKER = """
import os, sys
print(sys.argv[1:], os.environ.get("COLOUR"), open(f"/proc/{os.getppid()}/cmdline").read())
"""


def run(code: str) -> str:
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return found.stdout


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    file = tmp_path / "default_worker.py"
    file.write_text(WORKER)
    return file


def connected(address: Path) -> socket.socket:
    """Connect to a server as soon as it listens."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    while client.connect_ex(str(address)):
        time.sleep(0.01)
    return client


@pytest.fixture
def python(tmp_path: Path) -> Iterator[Path]:
    with fork_server.workers_forked(tmp_path):
        connected(tmp_path / "workers.sock").close()
        yield Path(sys.executable)


def output(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def test_a_worker_is_a_fork_with_its_own_arguments_environment_and_output(
    python: Path, worker: Path
) -> None:
    for colour in ("red", "blue"):
        printed = output(python, worker, "--id", colour, COLOUR=colour)
        assert printed.startswith(f"['--id', '{colour}'] {colour} ")
        assert "services.launch.fork_server" in printed


def test_another_command_runs_in_a_process_of_its_own(python: Path) -> None:
    code = "import sys; print(sys.argv[1:], 'grpc' in sys.modules)"
    assert output(python, "-c", code, "two words") == "['two words'] False\n"


def test_a_worker_starts_without_the_server_too(tmp_path: Path, worker: Path) -> None:
    fork_server.write_script(tmp_path / "python", tmp_path / "nobody.sock")
    printed = output(tmp_path / "python", worker, "--id", "7", COLOUR="red")
    assert printed.startswith("['--id', '7'] red ")
    assert "services.launch.fork_server" not in printed


def test_python_is_itself_again_and_the_server_gone_afterwards(
    tmp_path: Path, worker: Path
) -> None:
    before = sys.executable
    with fork_server.workers_forked(tmp_path):
        assert sys.executable == str(tmp_path / "python")
    assert sys.executable == before
    assert "services.launch.fork_server" not in output(tmp_path / "python", worker)


def test_no_file_of_the_current_directory_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worker: Path
) -> None:
    (tmp_path / "fastapi.py").write_text("raise SystemExit('a decoy')")
    worker.write_text(WORKER + "print(sys.path)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", sources())
    with fork_server.workers_forked(tmp_path):
        connected(tmp_path / "workers.sock").close()
        printed = output(sys.executable, worker)
    assert "services.launch.fork_server" in printed
    path = printed.splitlines()[-1]
    assert repr(str(ROOT)) in path
    assert repr(str(tmp_path)) not in path
    assert "''" not in path


def test_a_client_that_sends_nothing_holds_up_no_other(python: Path, worker: Path) -> None:
    with connected(python.with_name("workers.sock")):
        assert "services.launch.fork_server" in output(python, worker)


@pytest.mark.parametrize(
    ("end", "code", "error"),
    [
        ("", 0, ""),
        ("sys.exit(7)", 7, ""),
        ("sys.exit('no raylet')", 1, "no raylet\n"),
        ("raise ValueError('no raylet')", 1, "ValueError: no raylet\n"),
    ],
)
def test_a_worker_ends_as_any_program_does(
    tmp_path: Path, worker: Path, end: str, code: int, error: str
) -> None:
    """The server becomes the worker here, because only its parent sees a fork's exit code."""
    worker.write_text(f"import atexit, sys\natexit.register(print, 'at exit')\n{end}")
    address = tmp_path / "workers.sock"
    in_place = (
        "import os, sys\n"
        "from services.launch import fork_server\n"
        "os.fork, os.setpgid, fork_server.MODULES = lambda: 0, lambda *group: None, ()\n"
        "sys.modules['ray'] = fork_server\n"  # so that Ray is not imported
        "fork_server.main()"
    )
    command = [sys.executable, "-c", in_place, str(address)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process, connected(address) as client:
        # Without file descriptors, so that the process keeps its own.
        client.send(json.dumps({"arguments": [str(worker)], "environment": {}}).encode())
        output, errors = process.communicate()
    assert (output, process.returncode) == ("at exit\n", code)
    assert errors.endswith(error)
    assert bool(errors) == bool(error)


def test_forks_draw_different_random_ids() -> None:
    code = (
        "import os, ray\n"
        "from ray._raylet import JobID, PlacementGroupID\n"
        "for _ in range(2):\n"
        "    if os.fork() == 0:\n"
        "        print(PlacementGroupID.of(JobID.from_int(1)).hex(), flush=True)\n"
        "        os._exit(0)\n"
        "    os.wait()"
    )
    first, second = run(code).split()
    assert first != second


def test_the_shared_modules_start_no_thread_and_bring_in_neither_ray_nor_torch() -> None:
    code = (
        "import os; os.environ['OPENBLAS_NUM_THREADS'] = '1'\n"
        "import sys\n"
        "from services.launch import fork_server\n"
        "fork_server._import(fork_server.MODULES)\n"
        "print(len(os.listdir('/proc/self/task')), {'ray', 'torch'} & sys.modules.keys())"
    )
    assert run(code) == "1 set()\n"
