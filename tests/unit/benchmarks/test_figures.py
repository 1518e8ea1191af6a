"""Figures, ratios, tables, goals and the report of the benchmark."""

from pathlib import Path

import pytest

from benchmarks import cpu, report
from benchmarks.lines import Line, ratio, tables
from benchmarks.load import Outcome
from benchmarks.peers import ALL_NEW, BEST, DAY, TABLE, _lines
from benchmarks.report import Report

EDGE = {"name": "edge", "digest": "d1"}
MACHINE = {"processor": "P", "cores": 2, "instructions": ["avx2"]}
FACTS = {"date": "2030-01-01", "machine": MACHINE, "load": 0.1, "baseline": None, "quick": False}


def line(*rounds: float, row: str = "a", column: str = "x", table: str = "t") -> Line:
    return Line(table, row, column, "ms", rounds)


def test_ratios_are_taken_round_by_round() -> None:
    both = ratio("a / b", "x", line(10, 20, 30), line(5, 10, 15))
    assert both == Line("t", "a / b", "x", "×", [2, 2, 2])


def test_a_table_has_a_row_per_name_and_gaps_where_nothing_was_measured() -> None:
    """A figure is the median, between the least and the greatest value."""
    cells = [line(1, 3, 9), line(1234.5, row="b", column="y"), line(3, column="y")]
    assert tables([*cells, line(4, table="u")]).splitlines() == [
        "| t | x | y |",
        "|---|---|---|",
        "| a | 3 ms (1 to 9) | 3 ms |",
        "| b |  | 1,234 ms |",
        "",
        "| u | x |",
        "|---|---|",
        "| a | 4 ms |",
    ]


def test_ratios_are_to_the_best_peer_of_each_round() -> None:
    rates = {"ours": (6, 8), "A, as documented": (3, 2), "B, as documented": (2, 4)}
    rates["A, our library inside"] = (30, 30)
    turns = {
        name: [dict.fromkeys((*ALL_NEW, DAY), Outcome([1.0], rate)) for rate in rounds]
        for name, rounds in rates.items()
    }
    found = {line.name: line for line in _lines(turns)}
    assert found[TABLE, BEST, DAY] == Line(TABLE, BEST, DAY, "×", [2, 2])
    assert found[TABLE, "ours / A, our library inside", DAY].rounds == pytest.approx([0.2, 8 / 30])


def a_report(ms: float = 3.0) -> Report:
    lines = [Line(cpu.ACCOUNT, cpu.ABOVE, "new images, 8 clients", "ms", [ms, ms])]
    return Report(EDGE, {"cpu": lines}, {"cpu": dict(FACTS)})


def test_parts_of_another_run_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    assert Report.continued(path, EDGE).parts == {}
    a_report().write(path)
    assert Report.continued(path, EDGE) == a_report()
    assert Report.continued(path, EDGE | {"digest": "d2"}).parts == {}


@pytest.mark.parametrize(("ms", "verdict"), [(3.0, "reached"), (9.0, "**missed**")])
def test_a_document_has_goals_and_tables_and_keeps_what_is_around_them(
    tmp_path: Path, ms: float, verdict: str
) -> None:
    path = tmp_path / "RESULTS.md"
    path.write_text(f"# Before\n\n{report.BEGIN}\nold\n{report.END}\n\nAfter\n")
    for _ in range(2):
        a_report(ms).refresh(path)
    text = path.read_text()
    assert text.startswith("# Before\n")
    assert text.endswith("\n\nAfter\n")
    assert "old" not in text
    assert text.count(f"| ≤ 7 ms | {ms:g} ms ({ms:g} to {ms:g}) | {verdict} |") == 1
    assert "| ≥ 5 | not measured | |" in text
