"""The table of the effects of each fault: tests/faults/RESULTS.md."""

import platform
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.faults.load import Load

HEAD = """\
# Results of the fault tests

Written by `make faults` on {machine}, with the checkpoint `{checkpoint}`. Seven callers, one per
kind of request, apply a steady load, and every answer is compared with the library's. A failed
request is retried until it succeeds, and each attempt counts. Recovery is the time from the fault
(from its end, if it lasts) to the first answer after which nothing fails, for the slowest kind of
request. Goals: no wrong answers, no lost writes, and failures only of requests in flight on the
failed component; recovery within 5 s for Redis, 15 s for a replica and 30 s for the controller. A
partial run rewrites only the rows of its tests.

| fault | requests | failures | lost writes | wrong answers | recovery | date |
|---|---|---|---|---|---|---|
"""


@dataclass
class Report:
    """Table rows by fault, in the order of the tests, and paragraphs by title.

    Each addition updates the file at ``path``, if any; rows and paragraphs of other tests stay.
    """

    checkpoint: str
    path: Path | None
    rows: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def add(self, fault: str, load: Load) -> None:
        requests = sum(map(len, load.attempts.values()))
        failures = "; ".join(
            f"{kind}: {', '.join(f'{n} {code}' for code, n in codes.items())}"
            for kind, codes in load.failures(ever=True).items()
        )
        counts = (requests, failures or "0", load.lost, load.wrong(), f"{load.recovery_s:.1f} s")
        self.rows[fault] = " | ".join(map(str, (*counts, datetime.now(UTC).date())))
        self._write()

    def note(self, title: str, text: str) -> None:
        self.notes[title] = text
        self._write()

    def _write(self) -> None:
        if self.path is None:
            return
        before = self.path.read_text() if self.path.exists() else ""
        rows = dict(re.findall(r"^\| ([^|]*\S) \| (\d.*) \|$", before, re.MULTILINE)) | self.rows
        notes = dict(re.findall(r"^\*\*(.*?)\.\*\* (.*)$", before, re.MULTILINE)) | self.notes
        head = HEAD.format(
            machine=f"{platform.machine()}, {_cores()} cores", checkpoint=self.checkpoint
        )
        table = "".join(f"| {fault} | {cells} |\n" for fault, cells in rows.items())
        paragraphs = "".join(f"\n**{title}.** {text}\n" for title, text in notes.items())
        self.path.write_text(head + table + paragraphs)


def _cores() -> int:
    return Path("/proc/cpuinfo").read_text().count("processor\t")
