"""A folder on a disk, or at any URL that fsspec reads and writes."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Self

import fsspec
from fsspec.implementations.local import LocalFileSystem

from samclip_core import guarded
from samclip_core.io.files import replacing


class Folder:
    """A folder by its path or URL. A file in it is always replaced as a whole."""

    def __init__(self, location: str | Path) -> None:
        """Raises ValueError for an unknown protocol, ImportError if its package is missing."""
        self.system, path = fsspec.url_to_fs(str(location))
        self.path = path.rstrip("/")
        on_disk = isinstance(self.system, LocalFileSystem)
        self.disk = Path(self.path) if on_disk else None
        self.url = self.path if on_disk else self.system.unstrip_protocol(self.path)

    def __truediv__(self, name: str) -> Self:
        return type(self)(f"{self.url}/{name}")

    @property
    def parent(self) -> Self:
        """The folder that holds this one."""
        return type(self)(self.url.rpartition("/")[0])

    def exists(self, name: str) -> bool:
        """Return whether there is such a file or folder now, whichever worker has written it."""
        self.system.invalidate_cache()
        return bool(self.system.exists(f"{self.path}/{name}"))

    def open(self, name: str) -> IO[bytes]:
        """Open a file. Raises OSError, on a disk also for what is no regular file."""
        if self.disk is not None:
            return guarded.open_regular(self.disk / name)
        file: IO[bytes] = self.system.open(f"{self.path}/{name}", "rb")
        return file

    def text(self, name: str) -> str:
        """Return a file of up to guarded.MOST_BYTES. Raises OSError, ValueError."""
        with self.open(name) as file:
            content = file.read(guarded.MOST_BYTES + 1)
        if len(content) > guarded.MOST_BYTES:
            raise ValueError(f"{name} has more than {guarded.MOST_BYTES:,} bytes")
        return content.decode()

    def remove(self, name: str) -> None:
        self.system.rm(f"{self.path}/{name}")

    @contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """Yield a file on a disk to write to; afterwards it replaces the folder's file ``name``."""
        if self.disk is not None:
            self.disk.mkdir(parents=True, exist_ok=True)
            with replacing(self.disk / name) as partial:
                yield partial
            return
        with TemporaryDirectory() as scratch:
            file = Path(scratch) / name.rpartition("/")[2]
            yield file
            self.system.put_file(str(file), f"{self.path}/{name}")

    @contextmanager
    def on_disk(self) -> Iterator[Path]:
        """Yield this folder on a disk; new files of a folder at a URL are uploaded afterwards."""
        if self.disk is not None:
            yield self.disk
            return
        with TemporaryDirectory() as scratch:
            yield Path(scratch)
            self.upload(Path(scratch))

    def upload(self, directory: Path) -> None:
        """Copy the content of a directory into this folder."""
        self.system.put(f"{directory}/", self.path, recursive=True)

    def check(self) -> None:
        """Write, read and remove a small file. Raises OSError, with the reason, if that fails."""
        name = f".check-{uuid.uuid4().hex}"
        try:
            with self.replacing(name) as file:
                file.write_text(name)
            same = self.text(name) == name
            self.remove(name)
        except Exception as error:  # each file system has its own errors
            reason = f"{type(error).__name__}: {error}"
            raise OSError(
                f"no file could be written to {self.url} and read again ({reason}): expected a "
                "folder, or a URL that fsspec writes, for which the rights and credentials are set"
            ) from error
        if not same:
            raise OSError(f"{self.url} returned another content than was written to it")
