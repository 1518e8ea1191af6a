"""A stand-in for an object store: files of a folder at ``store://``, each request noted."""

import os
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

import fsspec
import pytest
from fsspec import AbstractFileSystem
from torch.utils.data import Dataset


class Request(NamedTuple):
    """A range that was read."""

    path: str
    start: int
    end: int


class ObjectStore(AbstractFileSystem):  # type: ignore[misc]
    """Serves ``root``; the requests of all processes are lines of ``notes``."""

    protocol = "store"
    cachable = False
    root: ClassVar[Path]
    notes: ClassVar[Path]
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
        type(self).before(path)
        with (self.root / path).open("rb") as file:
            file.seek(start or 0)
            content = file.read() if end is None else file.read(end - (start or 0))
        note = f"{path}\t{start or 0}\t{(start or 0) + len(content)}\n"
        file_number = os.open(self.notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file_number, note.encode())
        os.close(file_number)
        return content

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
        return [Request(path, int(start), int(end)) for path, start, end in lines]


def serve(root: Path, notes: Path, patch: pytest.MonkeyPatch) -> type[ObjectStore]:
    """Return the stand-in, which serves ``root`` at ``store://`` until ``patch`` is undone."""
    fsspec.register_implementation("store", ObjectStore, clobber=True)
    notes.touch()
    for name, value in {"root": root, "notes": notes}.items():
        patch.setattr(ObjectStore, name, value, raising=False)
    return ObjectStore


class Served(Dataset[Any]):
    """A dataset whose readers, processes of their own, reach the stand-in as this one does."""

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.run = dataset, getattr(dataset, "run", None)

    def __getitem__(self, step: int) -> Any:
        return self.dataset[step]

    def __reduce__(self) -> tuple[Any, ...]:
        return _elsewhere, (ObjectStore.root, ObjectStore.notes, pickle.dumps(self.dataset))


def _elsewhere(root: Path, notes: Path, dataset: bytes) -> Served:
    fsspec.register_implementation("store", ObjectStore, clobber=True)
    ObjectStore.root, ObjectStore.notes = root, notes
    return Served(pickle.loads(dataset))
