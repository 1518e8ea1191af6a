"""Processes that share pictures have the results of all, and end alike."""

import os
import signal

import pytest

from training.evaluation import parallel


def task(given: list[object]) -> int:
    """Return 0 if all results are here in order, 3 after an error of another process."""

    def work(item: object) -> tuple[object, int]:
        if item == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if item == "torn":
            raise ValueError("b.jpg is torn")
        return item, parallel.place()[0]

    expected = [(number, number % 2) for number in range(5)]
    if parallel.shared(range(5), work, "numbers") != expected:
        return 1
    try:
        parallel.shared(given, work, "pictures")
    except ValueError as error:
        return 3 if str(error) == "b.jpg is torn" else 4
    return 0


@pytest.mark.parametrize(("given", "code"), [([1, 2, 3], 0), ([1, "torn", 3], 3)])
def test_all_processes_have_the_results_in_order_or_the_error(given: list[object], code: int):
    assert parallel.run(task, given, 2) == code


def test_a_lost_process_ends_the_others():
    with pytest.raises(ChildProcessError, match=r"SIGKILL.*fewer --workers"):
        parallel.run(task, [1, "killed", 3], 2)
