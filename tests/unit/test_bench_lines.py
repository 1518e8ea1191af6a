"""Figures, their spread, and what counts as worse."""

import json

import pytest

from tests.bench.lines import Line, difference, is_worse, ratio, seen, table


def test_rounds_are_medians_and_p99_is_of_all() -> None:
    line = seen("x", [[1, 2, 100], [3, 4, 5]])
    assert line.rounds == [2, 4]
    assert line.median == 3
    assert line.p99 == pytest.approx(95.25)  # between 5 and 100: the 99th of 100


def test_ratios_are_taken_round_by_round() -> None:
    slower = Line("a", "ms", [10, 20, 30])
    both = ratio("a / b", slower, Line("b", "ms", [5, 10, 15]))
    assert both.rounds == [2, 2, 2]
    assert both.spread == (2, 2)
    assert difference("a - b", slower, Line("b", "ms", [5, 10, 15])).rounds == [5, 10, 15]


def test_rounds_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="zip"):
        ratio("", Line("a", "ms", [1, 2]), Line("b", "ms", [1]))


@pytest.mark.parametrize(
    ("old", "new", "more_is_better", "worse"),
    [
        ([10, 11, 12], [14, 15, 16], False, True),
        ([10, 11, 12], [14, 15, 16], True, False),
        ([14, 15, 16], [10, 11, 12], True, True),
        ([10, 11, 12], [11, 12, 20], False, False),  # their spreads overlap
        ([100, 100, 100], [101, 101, 101], False, False),  # less than machines differ
        ([-2, -2, -2], [3, 3, 3], False, True),
    ],
)
def test_worse_is_beyond_the_spread(
    old: list[float], new: list[float], more_is_better: bool, worse: bool
) -> None:
    line = Line("x", "ms", new, more_is_better)
    assert is_worse(line, Line("x", "ms", old, more_is_better)) is worse


def test_a_line_survives_json() -> None:
    line = Line("x", "ms", [1.0, 2.0], p99=3.0, facts={"errors": 0})
    assert Line.from_json(json.loads(json.dumps(line.to_json()))) == line


def test_the_table_has_a_row_a_line() -> None:
    rows = table([Line("one", "ms", [1.5]), Line("two", "/s", [20], p99=30)]).splitlines()
    assert rows[1].split() == ["one", "1.5", "1.5", "1.5", "ms"]
    assert rows[2].split() == ["two", "20", "20", "20", "30", "/s"]
