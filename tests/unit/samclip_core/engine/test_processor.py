"""Other programs disturb a measurement, or not; freed memory stays for what comes next."""

import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from samclip_core.engine import processor
from samclip_core.engine.processor import available, cores


@pytest.mark.parametrize(
    ("cpu_s", "wait_s", "quota", "expected"),
    [
        (20, 0, 2, True),
        (12, 0.5, 2, True),  # its threads have little to do at once
        (10, 10, 2, False),  # another program has half of the processor
        (13, 6, 2, False),
        (19, 20, 2, True),  # more threads than cores
        (9.5, 10, 1, True),  # a container with one of the cores
        (4, 6, 1, False),
    ],
)
def test_it_is_disturbed_if_threads_wait_and_it_gets_less_than_its_cores(
    monkeypatch: pytest.MonkeyPatch, cpu_s: float, wait_s: float, quota: float, expected: bool
) -> None:
    now = SimpleNamespace(wall=5.0, cpu=1.0, waited=3.0)
    monkeypatch.setattr(processor, "perf_counter", lambda: now.wall)
    monkeypatch.setattr(processor, "process_time", lambda: now.cpu)
    monkeypatch.setattr(processor, "waited_s", lambda: now.waited)
    monkeypatch.setattr(processor, "available", lambda: quota)
    watch = processor.Watch()
    now.wall, now.cpu, now.waited = 15.0, 1 + cpu_s, 3 + wait_s
    assert watch.quiet() is expected


@pytest.mark.parametrize(("cpu_s", "expected"), [(19, True), (10, False)])
def test_without_the_time_that_threads_waited_their_share_decides(
    monkeypatch: pytest.MonkeyPatch, cpu_s: float, expected: bool
) -> None:
    now = SimpleNamespace(wall=5.0, cpu=1.0)
    monkeypatch.setattr(processor, "perf_counter", lambda: now.wall)
    monkeypatch.setattr(processor, "process_time", lambda: now.cpu)
    monkeypatch.setattr(processor, "TASKS", Path("/nowhere"))
    monkeypatch.setattr(processor, "available", lambda: 2)
    watch = processor.Watch()
    now.wall, now.cpu = 15.0, 1 + cpu_s
    assert watch.quiet() is expected


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/a/b\n", {"a/cpu.max": "50000 100000", "a/b/cpu.max": "max 100000"}, 0.5),
        (
            "2:cpuacct,cpu:/a\n0::/\n",
            {
                "cpuacct,cpu/a/cpu.cfs_quota_us": "80000",
                "cpuacct,cpu/a/cpu.cfs_period_us": "100000",
            },
            0.8,
        ),
        (
            "1:cpu:/\n",
            {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
            None,
        ),
        ("0::/elsewhere\n", {}, None),
    ],
)
def test_the_quota_of_a_container_counts(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    membership: str,
    files: dict[str, str],
    expected: float | None,
) -> None:
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    (tmp_path / "membership").write_text(membership)
    monkeypatch.setattr(processor, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(processor, "GROUP", tmp_path / "membership")
    assert available() == pytest.approx(expected or cores())


FAULTS = """
import resource
import threading
import numpy as np
from samclip_core.engine.processor import keep_memory
if {kept}:
    keep_memory()
def compute():
    for size in (3, 20, 9, 28, 14, 6, 25):  # MiB, free again at the end
        blocks = [np.ones(size * 2**17) for _ in range(3)]
def again_and_again():
    global faults
    for _ in range(3):
        compute()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    compute()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
if {threaded}:
    thread = threading.Thread(target=again_and_again)
    thread.start()
    thread.join()
else:
    again_and_again()
print(faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("kept", [True, False])
def test_what_was_freed_is_there_for_what_comes_next(kept: bool, threaded: bool) -> None:
    """By default, glibc returns large blocks, and each new one causes page faults again."""
    ended = subprocess.run(
        [sys.executable, "-c", FAULTS.format(kept=kept, threaded=threaded)],
        capture_output=True,
        text=True,
        check=True,
    )
    faults = int(ended.stdout)
    assert faults < 10 if kept else faults > 1000
