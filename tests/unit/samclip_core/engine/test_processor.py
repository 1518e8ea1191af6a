"""A measurement knows whether other programs disturbed it, from fake clocks and control groups."""

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
