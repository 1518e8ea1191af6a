import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services import fork_server

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


@pytest.fixture
def python(tmp_path: Path) -> Iterator[Path]:
    with fork_server.workers_forked(tmp_path):
        python = Path(sys.executable)
        while not (tmp_path / "workers.sock").exists():
            time.sleep(0.01)
        yield python


def output(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def test_a_worker_is_a_fork_with_its_own_arguments_environment_and_output(
    python: Path, worker: Path
) -> None:
    for colour in ("red", "blue"):
        told = output(python, worker, "--id", colour, COLOUR=colour)
        assert told.startswith(f"['--id', '{colour}'] {colour} ")
        assert "services.fork_server" in told


def test_another_command_runs_in_a_process_of_its_own(python: Path) -> None:
    code = "import sys; print(sys.argv[1:], 'grpc' in sys.modules)"
    assert output(python, "-c", code, "two words") == "['two words'] False\n"


def test_a_worker_starts_without_the_server_too(tmp_path: Path, worker: Path) -> None:
    fork_server.write_script(tmp_path / "python", tmp_path / "nobody.sock")
    told = output(tmp_path / "python", worker, "--id", "7", COLOUR="red")
    assert told.startswith("['--id', '7'] red ")
    assert "services.fork_server" not in told


def test_python_is_itself_again_and_the_server_gone_afterwards(
    tmp_path: Path, worker: Path
) -> None:
    before = sys.executable
    with fork_server.workers_forked(tmp_path):
        assert sys.executable == str(tmp_path / "python")
    assert sys.executable == before
    assert "services.fork_server" not in output(tmp_path / "python", worker)


def test_forks_draw_different_random_ids() -> None:
    assert run(
        "import ray; from services.fork_server import _random_id as d; print(d() != d())"
    ) == ("True\n")


def test_the_shared_modules_start_no_thread_and_bring_in_neither_ray_nor_torch() -> None:
    code = (
        "import os; os.environ['OPENBLAS_NUM_THREADS'] = '1'\n"
        "import sys\n"
        "from services import fork_server\n"
        "fork_server._import(fork_server.MODULES)\n"
        "print(len(os.listdir('/proc/self/task')), {'ray', 'torch'} & sys.modules.keys())"
    )
    assert run(code) == "1 set()\n"
