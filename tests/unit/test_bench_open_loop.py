"""Where the knee is."""

from tests.bench.load import Outcome
from tests.bench.open_loop import knee


def outcome(due: float, ms: float, answered: float = 1.0, errors: int = 0) -> Outcome:
    rate = answered * due
    return Outcome([ms] * round(10 * rate), rate, due, errors=errors)


def test_the_knee_is_the_last_rate_that_was_kept_up_with() -> None:
    kept = {10.0: outcome(10, 5), 20.0: outcome(20, 8)}
    assert knee(kept) == 20
    assert knee(kept | {30.0: outcome(30, 26)}) == 20  # slow
    assert knee(kept | {30.0: outcome(30, 9, answered=0.8)}) == 20
    assert knee(kept | {30.0: outcome(30, 9, errors=1)}) == 20


def test_nothing_counts_behind_the_knee() -> None:
    assert knee({10.0: outcome(10, 5), 20.0: outcome(20, 99), 30.0: outcome(30, 6)}) == 10
    assert knee({10.0: outcome(10, 5, answered=0.3)}) == 0
    assert knee({}) == 0


def test_fewer_arrivals_than_their_rate_are_not_held_against_the_service() -> None:
    assert knee({10.0: outcome(8, 5), 20.0: outcome(16, 8)}) == 20
