"""Workers of a batch leave the cores to a service on the same machine."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from samclip_core.io.folder import Folder
from services.lake import job
from services.lake.plan import Plan
from services.lake.tables import FAILURES, IMAGES
from services.lake.worker import AUTOGROUP, NICE, as_planned
from services.settings import Settings
from services.sources.item import Columns
from tests.checkout import sources

STEPS_BACK = """
import os, sys
from pathlib import Path
from services.lake.worker import AUTOGROUP, step_back
from services.settings import Settings
for _ in range(2):  # a process may do several tasks
    step_back(Settings(device=sys.argv[1]))
group = AUTOGROUP.read_text().split() if AUTOGROUP.exists() else []  # none before a first setsid
print(os.nice(0), os.getsid(0) == os.getpid(), *group[-1:])
"""


def after_stepping_back(device: str) -> list[str]:
    """Return the niceness of a process, whether it has its own session, and that of the session."""
    run = subprocess.run(
        [sys.executable, "-c", STEPS_BACK, device],
        env={"PYTHONPATH": sources()},
        check=True,
        capture_output=True,
        text=True,
        process_group=0,  # as Ray starts its workers
    )
    return run.stdout.split()


def test_a_worker_on_cpus_steps_back_in_and_beside_its_session() -> None:
    grouped = AUTOGROUP.exists()
    ours = AUTOGROUP.read_text() if grouped else ""
    nice, own, *group = after_stepping_back("cpu")
    assert (nice, own) == (str(max(NICE, os.nice(0))), "True" if grouped else "False")
    assert group == ([str(NICE)] if grouped else [])
    assert ours == (AUTOGROUP.read_text() if grouped else "")


def test_a_worker_on_a_gpu_keeps_its_priority() -> None:
    assert after_stepping_back("cuda")[:2] == [str(os.nice(0)), "False"]


@pytest.mark.parametrize(
    ("asked", "planned", "used"),
    [
        ("auto", "int8+bfloat16:4caf4841", "int8+bfloat16"),
        ("auto", "bfloat16", "bfloat16"),
        ("float32", "bfloat16", "float32"),  # another model than planned, which is refused
        ("auto", None, "auto"),
    ],
)
def test_workers_compute_in_the_precision_of_the_plan(
    asked: Any, planned: str | None, used: str, tmp_path: Path
) -> None:
    """A measurement of their own may choose another one on a busy machine."""
    values = {"parts": 1, "images": 1, "model": {"dtype": planned}}
    plan = Plan(Folder(str(tmp_path)), values) if planned else None
    assert as_planned(Settings(dtype=asked), plan).dtype == used


class Replica:
    def answer(self) -> str:
        return "here"


@pytest.mark.slow
def test_a_replica_that_restarts_beside_a_batch_finds_its_core(
    small_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    class Waiting:
        """A worker whose parts wait for the file ``go``."""

        def __init__(self, out: str, settings: Settings, cpus: int, seen: None) -> None:
            (Path(out) / "started").touch()
            self._go = Path(out) / "go"

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            while not self._go.exists():
                time.sleep(0.05)
            return {IMAGES: int(row["data"]), FAILURES: 0, "error": ""}

    monkeypatch.setattr(job, "Worker", Waiting)
    replica = ray.remote(num_cpus=1)(Replica)
    first = replica.remote()
    assert ray.get(first.answer.remote()) == "here"
    one = job.Job(
        sources=(),
        out=str(tmp_path),
        work={},
        settings=Settings(),
        columns=Columns("", ""),
        budget=job.Budget(cpus=1),
    )
    found: list[int] = []

    def run() -> None:
        found.extend(row[IMAGES] for row in job._rows(one, Folder(one.out), range(8)))

    batch = threading.Thread(target=run)
    batch.start()
    try:
        while not (tmp_path / "started").exists():
            assert batch.is_alive()
            time.sleep(0.05)
        ray.kill(first)
        second = replica.remote()
        assert ray.get(second.answer.remote(), timeout=120) == "here"
    finally:
        (tmp_path / "go").touch()
        batch.join()
    assert sorted(found) == [*range(8)]
