"""A stand-in for an object store: files of a folder at ``store://``, each request noted."""

import fcntl
import os
import pickle
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

import fsspec
import pytest
from fsspec import AbstractFileSystem
from torch.utils.data import Dataset


class Request(NamedTuple):
    """A range that was read, and when, in seconds of the machine's clock."""

    path: str
    start: int
    end: int
    began: float
    ended: float


class ObjectStore(AbstractFileSystem):  # type: ignore[misc]
    """Serves ``root``; all processes share its rate, and their requests are lines of ``notes``."""

    protocol = "store"
    cachable = False
    root: ClassVar[Path]
    notes: ClassVar[Path]
    latency: ClassVar[float] = 0.0  # seconds
    rate: ClassVar[float] = 0.0  # bytes per second of all requests together; 0: unlimited
    before: ClassVar[Callable[[str], None]] = staticmethod(lambda path: None)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        folder = self.root / self._strip_protocol(path)
        if not folder.exists():
            raise FileNotFoundError(path)
        found = [
            {
                "name": str(file.relative_to(self.root)),
                "size": file.stat().st_size,
                "type": "directory" if file.is_dir() else "file",
            }
            for file in (sorted(folder.iterdir()) if folder.is_dir() else [folder])
        ]
        return found if detail else [facts["name"] for facts in found]

    def _open(self, path: str, mode: str = "rb", **_: Any) -> IO[bytes]:
        return (self.root / path).open(mode)  # type: ignore[return-value]

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        began = time.monotonic()
        type(self).before(path)
        time.sleep(self.latency)
        with (self.root / path).open("rb") as file:
            file.seek(start or 0)
            content = file.read() if end is None else file.read(end - (start or 0))
        if self.rate:
            time.sleep(max(0.0, self._sent_at(len(content)) - time.monotonic()))
        note = f"{path}\t{start or 0}\t{(start or 0) + len(content)}\t{began}\t{time.monotonic()}\n"
        file_number = os.open(self.notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file_number, note.encode())
        os.close(file_number)
        return content

    def _sent_at(self, size: int) -> float:
        """Return when the last of ``size`` bytes leaves the store, after those of all others."""
        with self.notes.with_suffix(".line").open("a+") as line:
            fcntl.flock(line, fcntl.LOCK_EX)
            line.seek(0)
            free = float(line.read() or 0)
            sent = max(free, time.monotonic()) + size / self.rate
            line.truncate(0)
            line.write(str(sent))
            line.flush()
        return sent

    def cat_ranges(
        self, paths: list[str], starts: Any, ends: Any, *_: Any, **__: Any
    ) -> list[bytes | Exception]:
        def read(path: str, start: int | None, end: int | None) -> bytes | Exception:
            try:
                return self.cat_file(path, start, end)
            except OSError as error:
                return error

        nothing: Sequence[None] = [None] * len(paths)
        if len(paths) == 1:
            return [read(paths[0], (starts or nothing)[0], (ends or nothing)[0])]
        with ThreadPoolExecutor(len(paths)) as pool:
            return list(pool.map(read, paths, starts or nothing, ends or nothing))

    @classmethod
    def requests(cls) -> list[Request]:
        """Return all requests so far, in the order of their ends."""
        lines = [line.split("\t") for line in cls.notes.read_text().splitlines()]
        return [
            Request(path, int(start), int(end), float(began), float(ended))
            for path, start, end, began, ended in lines
        ]


def serve(root: Path, notes: Path, patch: pytest.MonkeyPatch) -> type[ObjectStore]:
    """Return the stand-in, which serves ``root`` at ``store://`` until ``patch`` is undone."""
    _known()
    notes.touch()
    for name, value in {"root": root, "notes": notes}.items():
        patch.setattr(ObjectStore, name, value, raising=False)
    return ObjectStore


def _known() -> None:
    fsspec.register_implementation("store", ObjectStore, clobber=True)


class Served(Dataset[Any]):
    """A dataset whose readers, processes of their own, reach the stand-in as this one does."""

    FACTS = ("root", "notes", "latency", "rate")

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.run = dataset, getattr(dataset, "run", None)

    def __getitem__(self, step: int) -> Any:
        return self.dataset[step]

    def __reduce__(self) -> tuple[Any, ...]:
        facts = {name: getattr(ObjectStore, name) for name in self.FACTS}
        return _elsewhere, (facts, pickle.dumps(self.dataset))


def _elsewhere(facts: dict[str, Any], dataset: bytes) -> Served:
    _known()
    for name, value in facts.items():
        setattr(ObjectStore, name, value)
    return Served(pickle.loads(dataset))
