"""Compiled graphs on disk, each with a checksum, in a folder that only this user can access."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

from samclip_core import guarded
from samclip_core.io import checkpoint, files

logger = logging.getLogger(__name__)

UNUSED_S = 30 * 86400
"""Files that were neither read nor written for this long are deleted at the next write."""
_SUM_BYTES = 32
_MOST_BYTES = 2**33
"""Of a compiled graph."""


class DiskCache:
    """Named bytes under one ``key``. A folder that cannot be used counts as empty."""

    def __init__(self, folder: Path | None, *key: str) -> None:
        """Store nothing if ``folder`` is None."""
        self._folder = folder
        self._key = hashlib.sha256("\0".join(key).encode()).hexdigest()[:16]
        if folder is None:
            return
        try:
            files.make_private(folder)
            self._folder = folder.resolve()  # a link could lead elsewhere later
            files.check_folder(self._folder)
        except OSError as error:
            logger.warning("compiled graphs are not cached: %s", error)
            self._folder = None

    @property
    def usable(self) -> bool:
        """Whether the cache stores anything."""
        return self._folder is not None and os.access(self._folder, os.W_OK)

    @contextmanager
    def locked(self, name: str = "") -> Iterator[None]:
        """Let one process at a time into this context, per folder or name; all without a folder."""
        place = self._folder if self.usable else None
        if place and name:
            place = self._path(place, f"{name}.lock")
            try:
                place.touch(mode=0o600)
            except OSError:  # the disk is full
                place = None
        with files.locked(place) if place else nullcontext():
            yield

    def read(self, name: str) -> bytes | None:
        """Return the bytes written under a name; None if they are absent or damaged."""
        if self._folder is None:
            return None
        try:
            path = self._path(self._folder, name)
            stored = guarded.read(path, _MOST_BYTES)
            os.utime(path)
        except (OSError, ValueError):
            return None
        content = stored[_SUM_BYTES:]
        return content if hashlib.sha256(content).digest() == stored[:_SUM_BYTES] else None

    def write(self, name: str, content: bytes) -> None:
        """Write a file atomically; a failed write is ignored."""
        if self._folder is None:
            return
        with suppress(OSError), tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            partial = Path(scratch) / name
            partial.write_bytes(hashlib.sha256(content).digest() + content)
            partial.replace(self._path(self._folder, name))
            for path in self._folder.iterdir():
                if path.stat().st_mtime < time.time() - UNUSED_S:
                    path.unlink()

    def read_json(self, name: str) -> Any:
        """Return a value written by ``write_json``; None if it is absent or damaged."""
        with suppress(ValueError):
            return guarded.parsed(self.read(name) or b"null")
        return None

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, json.dumps(value).encode())

    def _path(self, folder: Path, name: str) -> Path:
        return folder / f"{self._key}-{name}"


@contextmanager
def without_links(directory: Path) -> Iterator[Callable[[str], Path]]:
    """Yield a function that returns the path of a graph beside its weights, by its name.

    The runtimes refuse links, so linked files are copied, once and until the end of the context.
    """
    with ExitStack() as until_end:

        @cache
        def copied() -> Path:
            scratch = Path(until_end.enter_context(tempfile.TemporaryDirectory()))
            for file in (checkpoint.WEIGHTS, checkpoint.TEXT_WEIGHTS):
                shutil.copy(directory / file, scratch)
            return scratch

        def path(name: str) -> Path:
            files = name, checkpoint.WEIGHTS, checkpoint.TEXT_WEIGHTS
            if not any((directory / file).is_symlink() for file in files):
                return directory / name
            return Path(shutil.copy(directory / name, copied()))

        yield path
