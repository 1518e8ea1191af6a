"""Run commands in forks of this process, each with a limit of memory and of time.

``python -m tests.strangers CASES.json`` prints the exit status and standard error of each.
"""

import importlib
import json
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from samclip import cli
from samclip.cli import commands, service

from samclip_core.io import private_ray
from services.launch import serve
from services.probe import command
from services.request import calls
from services.settings import SettingsError

MORE_BYTES = 900 * 2**20
"""Memory that a command may take."""
LIMIT_S = 300.0
HUNG = -1


def no_ray(*_: object, **__: object) -> NoReturn:
    raise SystemExit("Ray does not start here")


def replicas(settings: Any, *_: object) -> int:
    """Read what the processes of a service read, which Ray would start."""
    try:
        calls.connect("127.0.0.1:1", settings.backbone_ca_file)
    except SettingsError as error:
        raise SystemExit(str(error)) from error
    return no_ray()


def child(arguments: Sequence[str], output: int) -> NoReturn:
    os.setsid()
    for stream in (1, 2):
        os.dup2(output, stream)
    (data,) = re.findall(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())
    limit = int(data) * 1024 + MORE_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    status: Any = 3
    try:
        status = cli.main(arguments)
    except SystemExit as end:
        status = end.code
        if isinstance(status, str):
            status = print(status, file=sys.stderr) or 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 3)


def run(arguments: Sequence[str]) -> tuple[int, str]:
    """Return the exit status of a command, HUNG if it did not end, and what it wrote."""
    with tempfile.TemporaryFile() as output:
        process = os.fork()
        if not process:
            child(arguments, output.fileno())
        end, status = time.monotonic() + LIMIT_S, HUNG
        while time.monotonic() < end:
            ended, waited = os.waitpid(process, os.WNOHANG)
            if ended:
                status = os.waitstatus_to_exitcode(waited)
                break
            time.sleep(0.01)
        else:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
        output.seek(0)
        return status, output.read().decode(errors="replace")


def main() -> None:
    private_ray.started, serve._serve = no_ray, replicas
    command._connected = partial(service.connect, bulk=True)  # files come before requests
    for part in commands.PARTS.values():
        importlib.import_module(part.module)
    commands.parser(whole=True)
    os.environ |= {"SAMCLIP_SERVER": "127.0.0.1:1", "HF_HUB_OFFLINE": "1"}
    cases = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps({name: run(arguments) for name, arguments in cases.items()}))


if __name__ == "__main__":
    main()
