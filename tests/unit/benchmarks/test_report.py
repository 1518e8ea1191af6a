"""Results of several runs in one file, the goals and the tables."""

from pathlib import Path

import pytest

from benchmarks import cpu, report
from benchmarks.goals import GOALS
from benchmarks.lines import Line
from benchmarks.report import Report

EDGE = {"name": "edge", "digest": "d1"}
MACHINE = {"processor": "P", "cores": 2, "instructions": ["avx2"]}
FACTS = {"date": "2030-01-01", "machine": MACHINE, "load": 0.1, "baseline": None, "quick": False}
COLUMN = "new images, 8 clients"


def a_report(ms: float = 3.0) -> Report:
    lines = [Line(cpu.ACCOUNT, cpu.ABOVE, COLUMN, "ms", [ms, ms])]
    return Report(EDGE, {"cpu": lines}, {"cpu": dict(FACTS)})


def test_parts_of_another_run_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    a_report().write(path)
    assert Report.continued(path, EDGE) == a_report()
    assert Report.continued(path, EDGE | {"digest": "d2"}).parts == {}
    assert Report.continued(tmp_path / "absent.json", EDGE).parts == {}


@pytest.mark.parametrize(("ms", "verdict"), [(3.0, "reached"), (9.0, "**missed**")])
def test_goals_are_judged_by_the_median(ms: float, verdict: str) -> None:
    text = report.markdown(a_report(ms))
    assert f"| ≤ 7 ms | {ms:g} ms ({ms:g} to {ms:g}) | {verdict} |" in text
    assert "| ≥ 5 | not measured | |" in text


def test_goals_are_distinct() -> None:
    assert len({(goal.table, goal.row, goal.column) for goal in GOALS}) == len(GOALS)


def test_a_document_keeps_what_stands_around_the_tables(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    path.write_text(f"# Before\n\n{report.BEGIN}\nold\n{report.END}\n\nAfter\n")
    report.refresh(path, a_report())
    text = path.read_text()
    assert text.startswith("# Before\n")
    assert text.endswith("\n\nAfter\n")
    assert "old" not in text
    report.refresh(path, a_report())
    assert path.read_text() == text
