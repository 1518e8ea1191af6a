"""The results on disk, part by part, and as text: tables, goals reached, what is worse."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench import lines
from tests.bench.goals import judge
from tests.bench.lines import Line

RESULTS = Path(__file__).with_name("RESULTS.md")
BEGIN, END = "<!-- begin: made by make bench -->", "<!-- end -->"


@dataclass
class Report:
    """Parts may come from different runs; each one's ratios are of one run."""

    checkpoint: dict[str, str]
    parts: dict[str, list[Line]] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)  # of each part: date, machine

    @classmethod
    def read(cls, path: Path) -> "Report":
        values = json.loads(path.read_text())
        parts = {
            name: [Line.from_json(line) for line in part["lines"]]
            for name, part in values["parts"].items()
        }
        facts = {
            name: {key: value for key, value in part.items() if key != "lines"}
            for name, part in values["parts"].items()
        }
        return cls(values["checkpoint"], parts, facts)

    @classmethod
    def continued(cls, path: Path, checkpoint: dict[str, str]) -> "Report":
        """What earlier runs have measured of the same checkpoint, or nothing."""
        if path.exists():
            earlier = cls.read(path)
            if earlier.checkpoint == checkpoint:
                return earlier
        return cls(checkpoint)

    def write(self, path: Path, costs: Mapping[str, Any]) -> None:
        parts = {
            name: self.facts[name] | {"lines": [line.to_json() for line in part]}
            for name, part in self.parts.items()
        }
        values = {"checkpoint": self.checkpoint, "costs": costs, "parts": parts}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values, indent=1) + "\n")


def text(parts: Mapping[str, Sequence[Line]]) -> str:
    """For a terminal."""
    return "\n\n".join(f"{name}\n{lines.table(part)}" for name, part in parts.items() if part)


def worse(new: Report, old: Report) -> list[str]:
    """What is worse than in ``old`` beyond the spread of both; figures and lines that both have."""
    found = []
    for name, part in new.parts.items():
        before = {line.name: line for line in old.parts.get(name, [])}
        for line in part:
            if line.name in before and lines.is_worse(line, before[line.name]):
                was = before[line.name].median
                found.append(f"{name}: {line.name}: {was:.4g} → {line.median:.4g} {line.unit}")
    return found


def markdown(report: Report, earlier: str = "") -> str:
    """The goals, then every line; what was not measured now, as the ``earlier`` text has it."""
    before, *parts = earlier.split("\n### ")
    goals = {row.split(" | ")[0]: row for row in before.splitlines()}
    sections = {part.partition("\n")[0]: part.strip() for part in parts}
    sections |= {
        name: _section(name, part, report.facts[name])
        for name, part in report.parts.items()
        if part
    }
    rows = ["| figure | goal | median | p10 to p90 | |", "|---|---|---|---|---|"]
    for goal, line in judge(report.parts):
        bound = f"{'≤' if goal.at_most else '≥'} {goal.bound:g}"
        if line is None:
            absent = f"| {goal.what} | {bound} | not measured | | |"
            rows.append(goals.get(f"| {goal.what}", absent))
            continue
        verdict = "reached" if goal.reached(line) else "**missed**"
        rows.append(f"| {goal.what} | {bound} {line.unit} | {_cells(line)} | {verdict} |")
    return "\n\n".join(["\n".join(rows), *(f"### {section}" for section in sections.values())])


def _section(name: str, part: Sequence[Line], facts: Mapping[str, Any]) -> str:
    rows = [name, "", _origin(facts), "", "| | unit | median | p10 to p90 | p99 |"]
    rows.append("|---|---|---|---|---|")
    for line in part:
        p99 = f"{line.p99:.3g}" if line.p99 is not None else ""
        rows.append(f"| {line.name} | {line.unit} | {_cells(line)} | {p99} |")
    return "\n".join(rows)


def _cells(line: Line) -> str:
    low, high = line.spread
    return f"{line.median:.3g} | {low:.3g} to {high:.3g}"


def _origin(facts: Mapping[str, Any]) -> str:
    machine = facts["machine"]
    made_on = machine["gpu"] or f"{machine['processor']}, {machine['cores']} cores"
    quick = " --quick" if facts["quick"] else ""
    return f'`make bench ARGS="--only {facts["part"]}{quick}"`, {facts["date"]}, {made_on}.'


def refresh(path: Path, report: Report) -> None:
    """Renew what the report has in the tables between the marks of a document; the rest is kept."""
    before, _, rest = path.read_text().partition(BEGIN)
    earlier, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n\n{markdown(report, earlier)}\n\n{END}{after}")
