"""The figures of a stage: tables for the report, and event files for TensorBoard."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tensorboardX import SummaryWriter

from samclip_core.io.folder import Folder
from training import workers

LOSSES, VALIDATION, MEASURES = KINDS = "losses", "validation", "measures"
POINTS = 5000  # at most, of a curve of all steps in TensorBoard


class Journal:
    """What worker 0 writes down: NAME.losses.tsv and its like, and tensorboard/NAME/.

    The tables are kept in memory and written as a whole, since object stores cannot append.
    """

    def __init__(self, folder: Folder, name: str, done: int, steps: int) -> None:
        """Continue the tables after ``done`` steps, without the steps that will run again."""
        self.folder, self.name, self.done = folder, name, done
        self.every = max(1, steps // POINTS)
        self.writes = workers.rank() == 0
        self.tables = {kind: self._kept(kind) if self.writes else [] for kind in KINDS}
        self.changed: set[str] = set()
        self.events: SummaryWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Write what there is, also of steps that will run again."""
        if self.events is not None:
            self.events.close()  # before the upload: a flush does not wait for the writing thread
        self.save()
        if self.events is not None and self.folder.disk is None:
            shutil.rmtree(self.events.logdir)

    def add(
        self,
        kind: str,
        step: int,
        figures: Mapping[str, float],
        more: Mapping[str, float] | None = None,
    ) -> None:
        """Add a row to a table; TensorBoard also gets ``more``, which differs from run to run."""
        if not self.writes:
            return
        rows = self.tables[kind]
        if not rows:
            rows.append("\t".join(["step", *figures]))
        rows.append("\t".join([str(step), *(f"{value:.6g}" for value in figures.values())]))
        self.changed.add(kind)
        if kind != LOSSES or step % self.every == 0:
            for name, value in {**figures, **(more or {})}.items():
                tag = name if kind == LOSSES else f"{kind}/{name}"
                self._events().add_scalar(tag, value, step + (kind == LOSSES))  # steps done

    def save(self) -> None:
        for kind in sorted(self.changed):
            with self.folder.replacing(f"{self.name}.{kind}.tsv") as file:
                file.write_text("\n".join(self.tables[kind]) + "\n")
        self.changed.clear()
        if self.events is not None:
            self.events.flush()
            if self.folder.disk is None:
                self._event_folder().upload(Path(self.events.logdir))

    def _kept(self, kind: str) -> list[str]:
        file = f"{self.name}.{kind}.tsv"
        if not self.done or not self.folder.exists(file):
            return []
        head, *rows = self.folder.text(file).splitlines()
        limit = self.done + (kind != LOSSES)
        return [head, *(row for row in rows if int(row.split("\t")[0]) < limit)]

    def _events(self) -> SummaryWriter:
        """Return the writer of events, which replace those of steps that will run again."""
        if self.events is None:
            place = self._event_folder().disk or tempfile.mkdtemp()
            self.events = SummaryWriter(
                str(place), purge_step=self.done and self.done + 1, filename_suffix=f".{self.done}"
            )
        return self.events

    def _event_folder(self) -> Folder:
        return self.folder / "tensorboard" / self.name
