"""The table of what each fault did: tests/faults/RESULTS.md."""

import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.faults.load import Load

HEAD = """\
# What faults do

Written by `make faults`, on {machine}, {date}. {checkpoint} Steady load of seven kinds
of questions, one caller each; every answer is compared with the library's. A request that fails is
sent again until it is answered, and each attempt counts. Recovery: from the fault (or, where the
fault lasts, from its end) to the first answer, of the slowest kind, behind which nothing failed.

| fault | requests | failed, and how | lost writes | wrong answers | recovery |
|---|---|---|---|---|---|
"""


@dataclass
class Report:
    """Rows in the order of the tests."""

    checkpoint: str
    rows: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, fault: str, load: Load) -> None:
        requests = sum(map(len, load.attempts.values()))
        told = "; ".join(
            f"{kind}: {', '.join(f'{n} {code}' for code, n in codes.items())}"
            for kind, codes in load.all_failures().items()
        )
        cells = (fault, requests, told or "0", load.lost, load.wrong(), f"{load.recovery_s:.1f} s")
        self.rows.append(f"| {' | '.join(map(str, cells))} |")

    def write(self, path: Path) -> None:
        head = HEAD.format(
            machine=f"{platform.machine()}, {_cores()} cores",
            date=datetime.now(UTC).date(),
            checkpoint=f"Checkpoint `{self.checkpoint}`.",
        )
        notes = "".join(f"\n{note}\n" for note in self.notes)
        path.write_text(head + "\n".join(self.rows) + "\n" + notes)


def _cores() -> int:
    return Path("/proc/cpuinfo").read_text().count("processor\t")
