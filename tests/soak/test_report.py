"""The soak report detects growth in synthetic samples."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.faults.load import Attempt
from tests.soak.__main__ import MIB, Grown, report

SECONDS = 300.0


def process(mib_per_minute: float, jump_mib: float = 0.0, files_per_minute: float = 0.0) -> Grown:
    found = Grown("backbone")
    for second in np.arange(0, SECONDS, 5):
        warm_up = 200 * min(1.0, second / 60)
        jump = jump_mib if second > 200 else 0
        size = (200 + warm_up + mib_per_minute * second / 60 + jump) * MIB
        found.samples.append((second, int(size), int(50 + files_per_minute * second / 60), 30))
    return found


def load(code: str = "OK") -> SimpleNamespace:
    attempts = {"search": [Attempt(t, t + 0.02, code) for t in np.arange(0, SECONDS, 0.5)]}
    failures = {} if code == "OK" else {"search": {code: 600}}
    return SimpleNamespace(
        fault_at=0.0, attempts=attempts, lost=0, failures=lambda: failures, wrong=lambda: 0
    )


@pytest.mark.parametrize(
    ("grown", "sound"),
    [
        (process(0), True),
        (process(1), True),
        (process(5), False),
        (process(0, jump_mib=3), True),
        (process(0, files_per_minute=1), True),
        (process(0, files_per_minute=10), False),
    ],
)
def test_what_grows_is_found(grown: Grown, sound: bool) -> None:
    table, found = report([grown], load(), SECONDS)
    assert found is sound
    assert "| backbone | 4" in table
    assert ("too much" in table) is (not sound and "50 → 5" in table)


def test_a_failed_question_is_not_sound() -> None:
    assert not report([process(0)], load("UNAVAILABLE"), SECONDS)[1]
