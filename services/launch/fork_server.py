"""Start Ray's workers as forks of one process that has imported their modules.

Otherwise each of the nine workers (three of Serve, six replicas) would need a second of CPU time
and 45 MB for the same modules.

Ray starts a worker with ``sys.executable default_worker.py …``. A script replaces
``sys.executable``: it sends that command to this process and runs any other command. If this
process has ended, the script runs the worker as well.
"""

import ctypes
import gc
import importlib
import json
import os
import runpy
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from services.launch import fork_client

MODULES = (
    "fastapi",
    "grpc_reflection.v1alpha.reflection",
    "httpx",
    "jsonschema",
    "requests",
    "unittest.mock",
    "uvicorn",
    "services.heads.backbone_client",
)
"""Modules that most workers import, except Ray. None of them may start threads."""
CLIENT_S = 2
"""Time limit for a client to send its command."""
_PR_SET_PDEATHSIG = 1


@contextmanager
def workers_forked(directory: Path) -> Iterator[None]:
    """Fork the workers of a Ray that is started in this context; ``directory`` is private.

    On macOS, where a fork of a process that has imported libraries is not safe, Ray starts them.
    """
    if sys.platform != "linux":
        yield
        return
    address, script, python = directory / "workers.sock", directory / "python", sys.executable
    # -P: a file in the current directory may have the name of a module.
    server = subprocess.Popen(
        [python, "-P", "-m", "services.launch.fork_server", str(address)], start_new_session=True
    )
    write_script(script, address)
    sys.executable = str(script)
    try:
        yield
    finally:
        sys.executable = python
        server.kill()
        with suppress(subprocess.TimeoutExpired):
            server.wait(CLIENT_S)


def write_script(script: Path, address: Path) -> None:
    """Write a script that starts Ray's workers through the server and runs other commands."""
    python = shlex.quote(sys.executable)
    client = shlex.join([sys.executable, "-IS", fork_client.__file__, str(address), sys.executable])
    script.write_text(
        f'#!/bin/sh\ncase $1 in\n*/default_worker.py) exec {client} "$@" ;;\n'
        f'*) exec {python} "$@" ;;\nesac\n'
    )
    script.chmod(0o700)


def main() -> None:
    """Fork workers until the parent process ends; in a fork, run the worker as main program."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps workers
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(sys.argv[1])
        listener.listen(64)
        _import(MODULES)
        while not _fork_next(listener):
            pass
    runpy.run_path(sys.argv[0], run_name="__main__")


def _fork_next(listener: socket.socket) -> bool:
    """Fork a worker for the next client. Return whether this process is the fork."""
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(CLIENT_S)
        try:
            message, files, _, _ = socket.recv_fds(connection, fork_client.LONGEST, 3)
        except OSError:  # the client runs the worker itself
            return False
        if not message:  # the client has disconnected
            return False
        command = json.loads(message)
        if "ray" not in sys.modules:  # all workers have the same job and raylet
            os.environ.update(command["environment"])
            # Ray seeds its generator at first use: importing ``ray`` does not use it, importing
            # ``ray.serve`` does, and all forks would draw the same ids.
            _import(["ray"])
        forked = os.fork() == 0
        if not forked:
            with suppress(OSError):
                connection.send(b"forked")
    if forked:
        _become_worker(command, files)
    for file in files:
        os.close(file)
    return forked


def _import(names: Sequence[str]) -> None:
    for name in names:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a worker would write to shared pages


def _become_worker(command: dict[str, Any], files: Sequence[int]) -> None:
    """Set the process group, the standard files, the environment and the arguments."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)
    for target, file in enumerate(files):
        os.dup2(file, target)
    os.environ.clear()
    os.environ.update(command["environment"])
    sys.argv = command["arguments"]


if __name__ == "__main__":
    main()
