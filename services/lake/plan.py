"""The plan of a batch: its parts, listed once, and the work that is done on them.

It is in the folder ``_plan`` of the result: ``plan.json``, and files of ``PARTS_PER_FILE`` parts
each. Whoever writes ``plan.json`` first decides; every later run on the same folder follows it.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any, Self

from samclip_core.io.folder import Folder
from services.lake.tables import IMAGES, part_name, writing
from services.sources.item import Part

PARTS_PER_FILE = 16
"""A worker reads the whole file for one part: about half a megabyte."""
FOLDER, FILE = "_plan", "_plan/plan.json"


class PlanMismatch(ValueError):
    """The folder holds the plan of another batch."""


class Plan:
    """The parts of a batch and the work on them, as stored in the folder of its result."""

    def __init__(self, folder: Folder, values: Mapping[str, Any]) -> None:
        """Not for direct use: call ``load`` or ``make``."""
        self.folder, self.values = folder, values
        self.count: int = values["parts"]
        self.images: int | None = values["images"]

    @classmethod
    def load(cls, folder: Folder) -> Self | None:
        """Return the plan in a folder; None if there is none."""
        if not folder.exists(FILE):
            return None
        return cls(folder, json.loads(folder.text(FILE)))

    @classmethod
    def make(
        cls,
        folder: Folder,
        parts: Iterator[Part],
        about: Mapping[str, Any],
        planned: Callable[[int], None],
    ) -> Self:
        """List the parts and store the plan, unless another process has stored one meanwhile.

        ``about`` is what a later run must ask for as well; ``planned`` is called with the number of
        images of some more parts.
        """
        token, files = uuid.uuid4().hex, 0
        count, images, digest = 0, 0, hashlib.sha256()
        known = True
        while several := [*islice(parts, PARTS_PER_FILE)]:
            lines = "".join(json.dumps(part) + "\n" for part in several).encode()
            digest.update(lines)
            with writing(folder, f"{FOLDER}/{token}/{files:05d}.jsonl") as file:
                file.write_bytes(lines)
            counts = [part["count"] for part in several]
            known = known and None not in counts
            images += (more := sum(count or 0 for count in counts))
            planned(more)
            count, files = count + len(several), files + 1
        total = images if known else None
        own = {"parts": count, "images": total, "listing": token, "listed": digest.hexdigest()}
        with suppress(FileExistsError):
            _create(folder, FILE, json.dumps({**about, **own}, indent=2).encode())
        made = cls.load(folder)
        assert made is not None
        return made

    def check(self, about: Mapping[str, Any]) -> None:
        """Raise PlanMismatch unless this is the plan of a batch of the same sources and work."""
        for name, asked in about.items():
            if (planned := self.values[name]) != asked:
                raise PlanMismatch(
                    f"{self.folder.url} holds a batch with other {name} ({json.dumps(planned)}, "
                    f"now {json.dumps(asked)}): give what it was begun with, or another --out"
                )

    def part(self, number: int) -> Part:
        """Return a part."""
        file, line = divmod(number, PARTS_PER_FILE)
        name = f"{FOLDER}/{self.values['listing']}/{file:05d}.jsonl"
        found: Part = json.loads(self.folder.text(name).splitlines()[line])
        return found

    def missing(self) -> list[int]:
        """Return the parts that are not done."""
        done = set[str]()
        self.folder.system.invalidate_cache()
        with suppress(FileNotFoundError):
            paths = self.folder.system.ls(f"{self.folder.path}/{IMAGES}", detail=False)
            done = {path.rpartition("/")[2] for path in paths}
        return [n for n in range(self.count) if f"{part_name(n)}.parquet" not in done]


def _create(folder: Folder, name: str, content: bytes) -> None:
    """Write a file that must not exist yet. Raises FileExistsError."""
    if folder.disk is None:
        folder.system.pipe_file(f"{folder.path}/{name}", content, mode="create")
        return
    partial = folder.disk / f"{name}.{uuid.uuid4().hex}"
    partial.write_bytes(content)
    try:
        os.link(partial, folder.disk / name)  # fails if it exists, and is complete if not
    finally:
        partial.unlink()
