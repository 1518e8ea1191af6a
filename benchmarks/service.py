"""A running service observed from outside: start-up, memory, CPU time per process."""

import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.checkout import ROOT
from tests.e2e.conftest import Service, start

ROLES = {  # by pattern of the command line; the first match counts
    r"haproxy .*services/.*haproxy\.cfg": "front door",
    r"haproxy ": "Serve's HAProxy",
    r"-m (services\.|samclip\.cli serve)": "launcher",
    r"ServeReplica:backbone": "backbone replica",
    r"ServeReplica:classification": "classification replica",
    r"ServeReplica": "other replicas",
    r"/raylet ": "Ray's raylet",
    r"/gcs_server ": "Ray's GCS",
    r"ray::ServeController": "Ray's controller",
    r"": "Ray's other processes",
}


@dataclass
class Running:
    service: Service

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.service.http_port}"

    @property
    def ready_s(self) -> float:
        """The seconds until the service was ready, from its own log."""
        return float(re.findall(r"ready in ([\d.]+) s", self.service.log.read_text())[0])

    def cpu_ms(self) -> dict[str, float]:
        """Return the CPU time so far of the processes of each role."""
        spent: Counter[str] = Counter()
        for pid in self.service.processes():
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                user, system, *_ = process.cpu_times()
                spent[role(" ".join(process.cmdline()))] += 1000 * (user + system)
        return {name: spent[name] for name in ROLES.values()}

    def pss_bytes(self) -> int:
        """Return the proportional set size of all processes; shared memory counts once."""
        total = 0
        for pid in self.service.processes():
            with suppress(psutil.NoSuchProcess):
                total += psutil.Process(pid).memory_full_info().pss
        return total

    def post(self, path: str, kind: str, body: bytes) -> Any:
        url = f"http://{self.http}{path}"
        reply = httpx.post(url, content=body, headers={"content-type": kind}, timeout=120)
        return reply.raise_for_status().json()


def role(command: str) -> str:
    return next(name for pattern, name in ROLES.items() if re.search(pattern, command))


@contextmanager
def running(
    checkpoint: Path | str, python: str = sys.executable, root: Path = ROOT, **settings: object
) -> Iterator[Running]:
    """Run a service until the end of the block; ``root`` is the checkout of its code."""
    with tempfile.TemporaryDirectory(prefix="samclip-bench-") as folder:
        service = start(Path(folder), str(checkpoint), python, root, **settings)
        try:
            yield Running(service)
        finally:
            service.stop()
