"""A running service observed from outside: start-up, memory, CPU time per process."""

import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks import traffic
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
TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")


@dataclass
class Running:
    service: Service

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.service.http_port}"

    @property
    def ready_s(self) -> float:
        """The seconds until the service was ready, from its own log."""
        found = re.search(r"ready in ([\d.]+) s", self.service.log.read_text())
        assert found is not None
        return float(found[1])

    def cpu_ms(self) -> dict[str, float]:
        """Return the CPU time so far of the processes of each role."""
        spent: Counter[str] = Counter()
        for pid in self.service.processes():
            spent[role(_read(pid, "cmdline").replace("\0", " "))] += _cpu_ms(pid)
        return {name: spent[name] for name in ROLES.values()}

    def pss_bytes(self) -> int:
        """Return the proportional set size of all processes; shared memory counts once."""
        found = [_read(pid, "smaps_rollup") for pid in self.service.processes()]
        kib = [re.search(r"^Pss:\s+(\d+)", text, re.M) for text in found]
        return 1024 * sum(int(one[1]) for one in kib if one)

    def index(self) -> None:
        """Create the collection that a working day searches."""
        self._post("/index", "application/json", traffic.collection())

    def ask(self, ask: traffic.Ask) -> Any:
        return self._post(*traffic.to_service(ask))

    def _post(self, path: str, kind: str, body: bytes) -> Any:
        url = f"http://{self.http}{path}"
        reply = httpx.post(url, content=body, headers={"content-type": kind}, timeout=120)
        return reply.raise_for_status().json()


def role(command: str) -> str:
    return next(name for pattern, name in ROLES.items() if re.search(pattern, command))


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:  # the process ended
        return ""


def _cpu_ms(pid: int) -> float:
    fields = _read(pid, "stat").rpartition(")")[2].split()
    return TICK_MS * (int(fields[11]) + int(fields[12])) if fields else 0.0


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
