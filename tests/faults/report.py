"""The table of what each fault did: tests/faults/RESULTS.md."""

import platform
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.faults.load import Load

HEAD = """\
# What faults do

Written by `make faults`, on {machine}, with the checkpoint `{checkpoint}`. Steady load of seven
kinds of questions, one caller each; every answer is compared with the library's. A request that
fails is sent again until it is answered, and each attempt counts. Recovery: from the fault (or,
where the fault lasts, from its end) to the first answer, of the slowest kind, behind which nothing
failed. Goals: nothing wrong, nothing lost, failures only of what was in flight on the broken part;
recovery within 5 s for Redis, 15 s for a replica, 30 s for the controller. A run of some of the
tests rewrites their rows.

| fault | requests | failed, and how | lost writes | wrong answers | recovery | date |
|---|---|---|---|---|---|---|
"""


@dataclass
class Report:
    """Rows in the order of the tests, by fault; paragraphs below them, by title.

    Written to ``path``, where there is one, as soon as anything is known; what this run has not
    done stays there as it was.
    """

    checkpoint: str
    path: Path | None
    rows: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def add(self, fault: str, load: Load) -> None:
        requests = sum(map(len, load.attempts.values()))
        told = "; ".join(
            f"{kind}: {', '.join(f'{n} {code}' for code, n in codes.items())}"
            for kind, codes in load.all_failures().items()
        )
        counts = (requests, told or "0", load.lost, load.wrong(), f"{load.recovery_s:.1f} s")
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
        told = "".join(f"\n**{title}.** {text}\n" for title, text in notes.items())
        self.path.write_text(head + table + told)


def _cores() -> int:
    return Path("/proc/cpuinfo").read_text().count("processor\t")
