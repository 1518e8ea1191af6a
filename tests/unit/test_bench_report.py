"""Results of several runs in one file, what is worse than before, and the tables."""

from pathlib import Path

from tests.bench import report
from tests.bench.goals import GOALS
from tests.bench.lines import Line
from tests.bench.report import Report

EDGE = {"name": "edge", "digest": "d1"}
MACHINE = {"processor": "P", "cores": 2, "gpu": None}


def facts(part: str) -> dict[str, object]:
    return {"part": part, "date": "2030-01-01", "machine": MACHINE, "quick": False, "seconds": 3}


def a_report(ms: float = 3.0) -> Report:
    lines = [Line("added to a new image", "ms", [ms, ms])]
    return Report(EDGE, {"latency": lines}, {"latency": facts("latency")})


def test_parts_of_another_run_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    a_report().write(path, {})
    again = Report.continued(path, EDGE)
    assert again == a_report()
    assert Report.continued(path, EDGE | {"digest": "d2"}).parts == {}
    assert Report.continued(tmp_path / "absent.json", EDGE).parts == {}


def test_only_what_both_have_is_compared() -> None:
    new, old = a_report(9.0), a_report(3.0)
    new.parts["other"] = [Line("added to a new image", "ms", [100])]
    assert report.worse(new, old) == ["latency: added to a new image: 3 → 9 ms"]
    assert report.worse(old, new) == []


def test_goals_are_judged_by_the_median() -> None:
    assert "| ≤ 5 ms | 3 | 3 to 3 | reached |" in report.markdown(a_report(3.0))
    assert "| ≤ 5 ms | 9 | 9 to 9 | **missed** |" in report.markdown(a_report(9.0))
    assert "not measured" in report.markdown(a_report())


def test_goals_are_distinct() -> None:
    assert len({(goal.part, goal.line) for goal in GOALS}) == len(GOALS)


def test_a_document_keeps_what_stands_around_the_tables(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    path.write_text(f"# Before\n\n{report.BEGIN}\nold\n{report.END}\n\nAfter\n")
    report.refresh(path, a_report())
    text = path.read_text()
    assert text.startswith("# Before\n")
    assert text.endswith("\n\nAfter\n")
    report.refresh(path, a_report())
    assert path.read_text() == text


def test_a_document_keeps_what_was_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    path.write_text(f"{report.BEGIN}\n{report.END}\n")
    report.refresh(path, a_report(9.0))
    masks = Report(
        EDGE,
        {"masks": [Line("encoding / request, 64 masks", "×", [0.05])]},
        {"masks": facts("masks")},
    )
    report.refresh(path, masks)
    text = path.read_text()
    assert "| ≤ 5 ms | 9 | 9 to 9 | **missed** |" in text
    assert "| ≤ 0.1 × | 0.05 | 0.05 to 0.05 | reached |" in text
    assert text.index("### latency") < text.index("### masks")
    report.refresh(path, a_report(3.0))
    text = path.read_text()
    assert "| ≤ 5 ms | 3 | 3 to 3 | reached |" in text
    assert "9 to 9" not in text
    assert text.count("### latency") == text.count("### masks") == 1
