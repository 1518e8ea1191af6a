"""Measurements of a running service by the benchmark."""

import os
import time
from types import SimpleNamespace

import pytest

from benchmarks.service import Running, role

SITE = "/venv/lib/python3.11/site-packages"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (f"{SITE}/haproxy -db -q -f /src/services/front_door/haproxy.cfg", "front door"),
        (f"{SITE}/haproxy -db -f /tmp/x/haproxy.cfg", "Serve's HAProxy"),
        ("/venv/bin/python -m services.launch.serve", "launcher"),
        ("ray::ServeReplica:backbone:backbone", "backbone replica"),
        ("ray::ServeReplica:segmentation:segmentation", "other replicas"),
        ("ray::DashboardAgent", "Ray's other processes"),
    ],
)
def test_every_process_has_a_role(command: str, expected: str) -> None:
    assert role(command) == expected


def test_time_and_memory_are_those_of_the_processes_that_still_run() -> None:
    processes = [os.getpid(), 2**22 + 1]
    service = Running(SimpleNamespace(processes=lambda: processes))  # type: ignore[arg-type]
    before, begin = service.cpu_ms(), time.process_time()
    while time.process_time() < begin + 0.1:
        pass
    spent = sum(service.cpu_ms().values()) - sum(before.values())
    assert 50 < spent < 1000
    assert service.pss_bytes() > 2**20
