"""Processes that share pictures have the results of all, and end alike."""

import os
import signal
import time

import pytest
from torch.multiprocessing.spawn import ProcessContext

from training.evaluation import parallel


class Torn(Exception):
    def __init__(self, name: str, row: int):
        super().__init__(f"{name} is torn in row {row}")


def task(given: list[object]) -> None:
    """Check that all results are here in order. Raises the error of another process."""
    if "alone" in given and parallel.place()[0]:
        raise FileNotFoundError("the second one's folder is gone")
    if "ended" in given and parallel.place()[0]:
        raise SystemExit("cannot")
    if "odd" in given:
        raise Torn("a.jpg", 3)

    def work(item: object) -> tuple[object, int]:
        if item == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if item == "torn":
            raise ValueError("b.jpg is torn")
        if item == "odd work":
            raise Torn("c.jpg", 3)
        if item == "long":
            raise ValueError("long " * 50_000)
        return item, parallel.place()[0]

    expected = [(number, number % 2) for number in range(5)]
    assert parallel.shared(range(5), work, "numbers") == expected
    parallel.shared(given, work, "pictures")


def test_all_processes_have_the_results_in_order():
    parallel.run(task, [1, 2, 3], 2)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ([1, "torn", 3], ValueError("b.jpg is torn")),
        (["alone"], FileNotFoundError("is gone")),
        ([1, "long", 3], ValueError("long long")),  # more than a pipe holds
        (["ended"], SystemExit("cannot")),
        (["odd"], RuntimeError("Torn: a.jpg is torn in row 3")),  # pickle cannot make it again
        ([1, "odd work", 3], RuntimeError("Torn: c.jpg is torn in row 3")),
    ],
)
@pytest.mark.timeout(60)
def test_the_first_error_of_any_process_is_raised(given: list[object], error: BaseException):
    with pytest.raises(type(error), match=f"{error}"):
        parallel.run(task, given, 2)


@pytest.mark.parametrize("busy_s", [0, 3])
def test_a_lost_process_ends_the_others(busy_s: int, monkeypatch: pytest.MonkeyPatch):
    join = ProcessContext.join

    def late(context: ProcessContext, *args: object) -> bool:
        time.sleep(busy_s)  # the others notice before the parent does
        return join(context, *args)

    monkeypatch.setattr(ProcessContext, "join", late)
    with pytest.raises(ChildProcessError, match=r"SIGKILL.*fewer --workers"):
        parallel.run(task, [1, "killed", 3], 2)
