"""The plan of a batch: its parts, listed once, and the work that is done on them.

It is in the folder ``_plan`` of the result: ``plan.json``, and files of ``PARTS_PER_FILE`` parts
each. Whoever writes ``plan.json`` first decides; every later run on the same folder follows it. The
tables of a part carry the plan's digest, so that a folder has the tables of one plan only.
"""

import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq

from samclip_core import guarded
from samclip_core.io.folder import Folder
from services.lake.tables import FAILURES, IMAGES, part_name, writing
from services.sources.item import Part, differ, state
from services.sources.listing import items

PARTS_PER_FILE = 16
"""A worker reads the whole file for one part: about half a megabyte."""
READERS = 32
"""Parts that are asked at once: stores answer slowly."""
_PART = re.compile(r"part-(\d+)\.parquet")
FOLDER, FILE = "_plan", "_plan/plan.json"


class PlanMismatch(ValueError):
    """The folder holds the plan or the tables of another batch, or its plan is damaged."""


class Stamp(NamedTuple):
    """Metadata of both tables of a part; ``states`` are those of its files.

    ``failures`` counts all images without an answer, ``unread`` those of them that could not be
    read: with any, the part is not done.
    """

    plan: str
    states: tuple[str, ...]
    images: int
    failures: int
    unread: int

    def metadata(self) -> dict[str, str]:
        """Return the stamp as metadata of a Parquet file."""
        values = self._asdict() | {"states": ",".join(self.states)}
        return {f"samclip.{name}": f"{value}" for name, value in values.items()}

    @classmethod
    def of(cls, metadata: Mapping[bytes, bytes] | None) -> Self:
        """Return the stamp in the metadata of a file; that of another program has no plan."""
        found = metadata or {}
        plan, states, *counts = (found.get(f"samclip.{name}".encode(), b"") for name in cls._fields)
        return cls(
            plan.decode(), tuple(states.decode().split(",")), *(int(count or 0) for count in counts)
        )


def read_stamp(folder: Folder, number: int, table: str = IMAGES) -> Stamp | None:
    """Return the stamp of a part's table; None if the table is not there or damaged."""
    try:
        with folder.open(f"{table}/{part_name(number)}.parquet") as file:
            return Stamp.of(pq.ParquetFile(file).metadata.metadata)
    except (FileNotFoundError, pa.ArrowException):
        return None
    except OSError as error:
        if error.errno is not None:
            raise
        return None  # as Arrow says that a footer is damaged


class Plan:
    """The parts of a batch and the work on them, as stored in the folder of its result."""

    def __init__(self, folder: Folder, values: Mapping[str, Any]) -> None:
        """Not for direct use: call ``load`` or ``make``."""
        self.folder, self.values = folder, values
        self.count: int = values["parts"]
        self.images: int | None = values["images"]
        about = {name: value for name, value in values.items() if name != "listing"}
        encoded = json.dumps(about, sort_keys=True).encode()
        self.digest = hashlib.sha256(encoded).hexdigest()
        """The same for every plan of the same sources and work."""

    @classmethod
    def load(cls, folder: Folder) -> Self | None:
        """Return the plan in a folder; None if there is none. Raises PlanMismatch."""
        if not folder.exists(FILE):
            return None
        try:
            return cls(folder, guarded.parsed(folder.text(FILE)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(folder, f"{FILE} is no plan ({error})") from error

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
        images of some more parts. Raises PlanMismatch if the folder has tables of another plan.
        """
        token = uuid.uuid4().hex

        def store(at: int, lines: bytes) -> None:
            with writing(folder, f"{FOLDER}/{token}/{at:05d}.jsonl") as file:
                file.write_bytes(lines)

        values = listed(parts, planned, store)
        made = cls(folder, {**about, **values, "listing": token})
        made.stamps()
        with suppress(FileExistsError):
            _create(folder, FILE, json.dumps(made.values, indent=2).encode())
        stored = cls.load(folder)
        assert stored is not None
        return stored

    def check(self, about: Mapping[str, Any]) -> None:
        """Raise PlanMismatch unless this is the plan of a batch of the same sources and work."""
        for name, asked in about.items():
            if (planned := self.values.get(name)) != asked:
                raise PlanMismatch(
                    f"{self.folder.url} holds a batch with other {name} ({json.dumps(planned)}, "
                    f"now {json.dumps(asked)}): give what it was begun with, or another --out"
                )

    def part(self, number: int) -> Part:
        """Return a part. Raises PlanMismatch if its file is missing."""
        file, line = divmod(number, PARTS_PER_FILE)
        name = f"{FOLDER}/{self.values['listing']}/{file:05d}.jsonl"
        try:
            found: Part = guarded.parsed(self.folder.text(name).splitlines()[line])
        except (FileNotFoundError, ValueError, IndexError) as error:
            raise _damaged(self.folder, f"{name} is missing or damaged") from error
        return found

    def stamps(self) -> dict[int, Stamp]:
        """Return the stamp of each part with a table. Raises PlanMismatch for one of another plan.

        A table that is damaged has no stamp.
        """
        numbers = self._with_tables()
        with ThreadPoolExecutor(READERS) as pool:
            read = [*pool.map(partial(read_stamp, self.folder), numbers)]
        stamps = {number: stamp for number, stamp in zip(numbers, read, strict=True) if stamp}
        for number, stamp in stamps.items():
            self.check_stamp(number, stamp)
        return stamps

    def _with_tables(self) -> list[int]:
        """Return the numbers of the parts that have a table of images, in order."""
        self.folder.system.invalidate_cache()
        with suppress(FileNotFoundError):
            paths = self.folder.system.ls(f"{self.folder.path}/{IMAGES}", detail=False)
            names = (_PART.fullmatch(path.rpartition("/")[2]) for path in paths)
            return sorted(int(match[1]) for match in names if match)
        return []

    def check_stamp(self, number: int, stamp: Stamp) -> None:
        """Raise PlanMismatch if the stamp of a part is of another plan."""
        if stamp.plan != self.digest:
            raise PlanMismatch(
                f"{self.folder.url}/{IMAGES}/{part_name(number)}.parquet is of a batch with other "
                "sources or questions, or of another version of samclip: give another --out"
            )

    def done(self) -> dict[int, Stamp]:
        """Return the stamps of the parts that are done, from files that have not changed since.

        Raises PlanMismatch.
        """
        stamps = self.stamps()
        with ThreadPoolExecutor(READERS) as pool:
            done = [*pool.map(self.is_done, stamps.keys(), stamps.values())]
        return {
            number: stamps[number] for number, is_done in zip(stamps, done, strict=True) if is_done
        }

    def is_done(self, number: int, stamp: Stamp) -> bool:
        """Return whether a part with this stamp needs no more work."""
        if stamp.unread or read_stamp(self.folder, number, FAILURES) != stamp:
            return False  # of a writer that was killed between both tables
        return not differ(stamp.states, self._states(number, len(stamp.states)))

    def _states(self, number: int, count: int) -> Iterator[str]:
        """Yield the states of a part's files now, in the order of those in its stamp."""
        part = self.part(number)
        if "path" in part:
            yield state(part["path"])
            count -= 1
        if count and part["kind"] != "shard":  # a table with the images' bytes names no files
            yield from (item.state() for item in items(part) if item.has_own_file)


def listed(
    parts: Iterator[Part], planned: Callable[[int], None], store: Callable[[int, bytes], None]
) -> dict[str, Any]:
    """Return the values of a plan that depend on the sources, once all parts have been read.

    ``store`` gets the number and the lines of each file of parts, ``planned`` how many images these
    have. The number of all images is None if it is not known.
    """
    count, images, known, digest = 0, 0, True, hashlib.sha256()
    for at, several in enumerate(iter(lambda: [*islice(parts, PARTS_PER_FILE)], [])):
        lines = "".join(json.dumps(part) + "\n" for part in several).encode()
        store(at, lines)
        digest.update(lines)
        counts = [part["count"] for part in several]
        known, count = known and None not in counts, count + len(several)
        images += sum(number or 0 for number in counts)
        planned(sum(number or 0 for number in counts))
    return {"parts": count, "images": images if known else None, "listed": digest.hexdigest()}


def _damaged(folder: Folder, reason: str) -> PlanMismatch:
    return PlanMismatch(
        f"{folder.url}: {reason}: remove {folder.url}/{FOLDER} and repeat the command, which lists "
        "the sources again and keeps the tables if they are as they were"
    )


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
