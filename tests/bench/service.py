"""A running service seen from outside: what it says of its stages, what it takes of the machine."""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import httpx

from tests.e2e.conftest import Service, start

_STAGE = re.compile(r'samclip_stage_seconds_(sum|count)\{stage="(\w+)"\} (\S+)')


@dataclass
class Running:
    """``greeting_s`` is what the service itself says that it took to become ready."""

    service: Service

    @property
    def grpc(self) -> str:
        return self.service.address

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.service.http_port}"

    @property
    def greeting_s(self) -> float:
        found = re.search(r"ready in ([\d.]+) s", self.service.log.read_text())
        assert found is not None
        return float(found[1])

    @cached_property
    def pids(self) -> list[int]:
        return self.service.processes()

    def cpu_seconds(self) -> float:
        """That all of its processes have taken until now."""
        return sum(map(_cpu_ticks, self.pids)) / os.sysconf("SC_CLK_TCK")

    def pss_bytes(self) -> int:
        """Proportional set size: memory that is shared counts once."""
        return sum(map(_pss_kib, self.service.processes())) * 1024

    def stages(self) -> dict[str, tuple[float, float]]:
        """Seconds and number of what ran in each stage until now."""
        text = httpx.get(f"http://{self.http}/metrics", timeout=60).text
        return stages_of(text)


def stages_of(metrics: str) -> dict[str, tuple[float, float]]:
    """Of Prometheus' text."""
    found: dict[str, dict[str, float]] = {}
    for line in metrics.splitlines():
        if match := _STAGE.match(line):
            found.setdefault(match[2], {})[match[1]] = float(match[3])
    return {stage: (values["sum"], values["count"]) for stage, values in found.items()}


def mean_ms(
    before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]]
) -> dict[str, float]:
    """Milliseconds that each stage took each time between two moments, where it ran at all."""
    means = {}
    for stage, (seconds, number) in after.items():
        earlier_s, earlier = before.get(stage, (0.0, 0.0))
        if number > earlier:
            means[stage] = 1000 * (seconds - earlier_s) / (number - earlier)
    return means


def _cpu_ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it ended
        return 0
    return int(fields[11]) + int(fields[12])


def _pss_kib(pid: int) -> int:
    try:
        found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    except OSError:
        return 0
    return int(found[1]) if found else 0


@contextmanager
def running(
    directory: Path,
    cores: set[int] | None = None,
    python: str = sys.executable,
    **settings: object,
) -> Iterator[Running]:
    """A service of its own, on ``cores`` alone where they are given, until the end of the block."""
    everywhere = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory(prefix="samclip-bench-") as folder:
        os.sched_setaffinity(0, cores or everywhere)
        try:
            service = start(Path(folder), str(directory), python, **settings)
        finally:
            os.sched_setaffinity(0, everywhere)
        try:
            yield Running(service)
        finally:
            service.stop()
