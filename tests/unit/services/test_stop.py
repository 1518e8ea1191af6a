"""A service ends when a signal asks for it, whatever that interrupts, and says so last."""

import io
import json
import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from services import stop
from services.stop import Stop, Stopped
from tests.checkout import sources
from tests.ports import free_port

SERVICE = """
import os, sys
from contextlib import nullcontext

from ray import serve as ray_serve

from samclip_core.io import private_ray
from services.deployment import replica
from services.front_door import haproxy
from services.launch import applications, serve

class Interrupted:
    '''A lock of Popen; a signal arrives just after the first time that it is taken.'''

    def __init__(self, lock):
        self.lock, self.pending = lock, [int(sys.argv[1])]

    def acquire(self, *args):
        taken = self.lock.acquire(*args)
        while taken and self.pending:
            os.kill(os.getpid(), self.pending.pop())
        return taken

    def __getattr__(self, name):
        return getattr(self.lock, name)

    __enter__ = lambda self: self.acquire()
    __exit__ = lambda self, *_: self.release()

def start(*given, started=haproxy.start):
    door = started(*given)
    door._waitpid_lock = Interrupted(door._waitpid_lock)
    return door

haproxy.start = start
replica.choose_runtimes = lambda settings: None
private_ray.started = serve._ray_watched = lambda *_, **options: nullcontext()
applications.start = applications.wait_until_ready = lambda *_: None
ray_serve.shutdown = lambda: None
sys.exit(eval(sys.argv[2]).main([]))
"""
"""A service without Ray, which is interrupted while it polls HAProxy."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["serve", "haproxy"])
def test_a_signal_while_it_polls_haproxy_ends_it(
    module: str, number: signal.Signals, tmp_path: Path
) -> None:
    names = ("HTTP_PORT", "GRPC_PORT", "INNER_HTTP_PORT", "INNER_GRPC_PORT")
    given = {name: free_port() for name in names} | {"FRONT_DOOR_SECRET": "sesame"}
    given |= {"INDEX_DIR": tmp_path / "index", "LOG_LEVEL": "INFO"}
    environment = {f"SAMCLIP_{name}": str(value) for name, value in given.items()}
    done = subprocess.run(
        [sys.executable, "-c", SERVICE, str(int(number)), module],
        env=os.environ | environment | {"PYTHONPATH": sources()},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0
    last = json.loads(done.stderr.splitlines()[-1])
    assert last["message"] == f"stopped by {stop.NAMES[number]}"


@pytest.mark.parametrize(
    ("limit", "presses", "last"),
    [("LIMIT_S", 1, "did not end within 0.1 s"), ("TWICE_S", 2, "Ctrl-C was pressed again")],
)
def test_what_does_not_end_in_time_or_before_a_second_signal_is_killed_with_all_that_it_started(
    limit: str, presses: int, last: str, tmp_path: Path
) -> None:
    code = (
        "import os, signal, subprocess, sys, time; from pathlib import Path\n"
        "from services import stop\n"
        "from services.observability import logs; logs.start('INFO')\n"
        f"stop.{limit} = 0.1; folder = Path(sys.argv[1]); ending = stop.Stop('service', folder)\n"
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "with ending.listening():\n"
        "    print(child.pid, flush=True)\n"
        f"    for _ in range({presses}): os.kill(os.getpid(), signal.SIGINT); time.sleep(0.5)\n"
        "    child.wait()\n"
    )
    (tmp_path / "own").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "own"],
        env=os.environ | {"PYTHONPATH": sources()},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 1
    assert f"{last}, so its processes were killed" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "own").exists()
    with suppress(psutil.NoSuchProcess):
        assert psutil.Process(int(done.stdout)).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("reason", [Stopped("stopped by Ctrl-C"), RuntimeError("raylet ended")])
def test_the_end_is_one_sentence_on_a_terminal_and_a_line_of_the_log_elsewhere(
    terminal: bool,
    reason: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    screen = io.StringIO()
    screen.isatty = lambda: terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "__stderr__", screen)
    caplog.set_level(logging.INFO, "services")
    assert Stop("samclip serve", tmp_path).say(reason) == isinstance(reason, RuntimeError)
    assert screen.getvalue() == (f"samclip serve: {reason}\n" if terminal else "")
    assert caplog.messages == ([] if terminal else [str(reason)])
