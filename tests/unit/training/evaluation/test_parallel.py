"""Processes that share pictures have the results of all, and end alike."""

import os
import signal

import pytest

from training.evaluation import parallel


def task(given: list[object]) -> None:
    """Check that all results are here in order. Raises the error of another process."""
    if "alone" in given and parallel.place()[0]:
        raise FileNotFoundError("the second one's folder is gone")

    def work(item: object) -> tuple[object, int]:
        if item == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if item == "torn":
            raise ValueError("b.jpg is torn")
        return item, parallel.place()[0]

    expected = [(number, number % 2) for number in range(5)]
    assert parallel.shared(range(5), work, "numbers") == expected
    parallel.shared(given, work, "pictures")


def test_all_processes_have_the_results_in_order():
    parallel.run(task, [1, 2, 3], 2)


@pytest.mark.parametrize(
    ("given", "error"),
    [([1, "torn", 3], ValueError("b.jpg is torn")), (["alone"], FileNotFoundError("is gone"))],
)
def test_the_first_error_of_any_process_is_raised(given: list[object], error: Exception):
    with pytest.raises(type(error), match=f"{error}"):
        parallel.run(task, given, 2)


def test_a_lost_process_ends_the_others():
    with pytest.raises(ChildProcessError, match=r"SIGKILL.*fewer --workers"):
        parallel.run(task, [1, "killed", 3], 2)
