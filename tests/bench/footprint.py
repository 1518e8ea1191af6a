"""Part ``footprint``: how long until the service is ready, and the memory that it takes.

In an environment that holds what ``make serve`` installs: Ray imports what else it finds.
"""

import subprocess

from tests.bench.bench import Bench
from tests.bench.lines import Line
from tests.bench.load import Job
from tests.bench.service import Running, running

GB = 1e9


def run(bench: Bench) -> list[Line]:
    python = _installed(bench)
    ready, idle, served = [], [], []
    for _ in range(1 if bench.quick else 3):
        with running(bench.directory, python=python) as service:
            ready.append(service.greeting_s)
            idle.append(service.pss_bytes() / GB)
            served.append(_after_work(bench, service))
    return [
        Line("until ready", "s", ready),
        Line("memory, idle (PSS)", "GB", idle),
        Line("memory, after work (PSS)", "GB", served),
    ]


def _installed(bench: Bench) -> str:
    """The interpreter of that environment, which is made where it is absent."""
    home = (bench.out / "serve").resolve()
    subprocess.run(["make", f"VENV={home}", f"{home}/.serve"], check=True)
    return str(home / "bin" / "python")


def _after_work(bench: Bench, service: Running) -> float:
    for kind, images in (("classify", "new"), ("click", "new"), ("semantic", "key")):
        bench.load(Job("grpc", service.grpc, kind, images, clients=8, seconds=bench.seconds))
    return service.pss_bytes() / GB
