"""Benchmark figures, their ratios and tables."""

import pytest

from benchmarks.lines import Line, ratio, tables


def line(*rounds: float, row: str = "a", column: str = "x", table: str = "t") -> Line:
    return Line(table, row, column, "ms", rounds)


def test_ratios_are_taken_round_by_round() -> None:
    both = ratio("a / b", "x", line(10, 20, 30), line(5, 10, 15))
    assert both == Line("t", "a / b", "x", "×", [2, 2, 2])
    with pytest.raises(ValueError, match="zip"):
        ratio("", "", line(1, 2), line(1))


def test_a_figure_is_the_median_between_the_extremes() -> None:
    assert str(line(1, 3, 9)) == "3 ms (1 to 9)"
    assert str(line(1234.5)) == "1,234 ms"


def test_a_table_has_a_row_per_name_and_gaps_where_nothing_was_measured() -> None:
    cells = [line(1), line(2, row="b", column="y"), line(3, column="y"), line(4, table="u")]
    assert tables(cells).splitlines() == [
        "| t | x | y |",
        "|---|---|---|",
        "| a | 1 ms | 3 ms |",
        "| b |  | 2 ms |",
        "",
        "| u | x |",
        "|---|---|",
        "| a | 4 ms |",
    ]
