"""Files at a path, or at a URL of any protocol that fsspec reads, opened within limits."""

import io
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from samclip.files import TIMEOUT_S, download, read_to_end, within
from samclip.values.files import open_regular

BLOCK_BYTES = 2**20
"""What a file that is read as a stream must give within TIMEOUT_S."""
WEB = ("http", "https")
TRIES, WAIT_S = 3, 1.0
T = TypeVar("T")


class Unread(OSError):
    """A file that could not be read to its end, and may be readable later."""


def protocol(place: str) -> str:
    """Return the protocol of a URL, "" for a path."""
    scheme = place.partition("://")[0].lower() if "://" in place else ""
    return "" if scheme in LocalFileSystem.protocol else scheme


def system_of(place: str) -> tuple[Any, str]:
    """Return the file system of a file or folder, and its path there.

    Raises ValueError for an unknown protocol and a chain of several, ImportError if the package
    for the protocol is missing.
    """
    if "://" not in place:
        return LocalFileSystem(), os.path.abspath(place)
    scheme = place.partition("://")[0].lower()
    if "::" in scheme:
        raise ValueError(f"{scheme} is a chain of protocols: give the address without")
    kind = fsspec.get_filesystem_class(scheme)  # a name with :: is no chain here
    system = fsspec.filesystem(scheme, **kind._get_kwargs_from_urls(place))
    return system, str(kind._strip_protocol(place))


def url_of(system: Any, path: str) -> str:
    """Return the place of a path of a file system."""
    return path if isinstance(system, LocalFileSystem) else str(system.unstrip_protocol(path))


def read(place: str) -> bytes:
    """Return a file of up to MAX_FILE_BYTES, after several tries within TIMEOUT_S each.

    Raises OSError if it could not be read, and may be readable later, and ValueError otherwise.
    """
    if protocol(place) in WEB:
        return retried(lambda: download(place))

    def work(deadline: float) -> bytes:
        with _opened(place) as file:
            return read_to_end(file.read, deadline)

    return retried(lambda: _attempt(work))


def open_file(place: str) -> io.BufferedReader:
    """Open a file for reading as a stream. Raises Unread, also while it is read, or ValueError."""
    try:
        file = retried(lambda: _attempt(lambda _: _opened(place)))
    except OSError as error:
        raise Unread(error.strerror or str(error)) from error
    return io.BufferedReader(_Stream(file), BLOCK_BYTES)


def _opened(place: str) -> Any:
    system, path = system_of(place)
    return open_regular(path) if isinstance(system, LocalFileSystem) else system.open(path, "rb")


def _attempt(work: Callable[[float], T]) -> T:
    """Return what a function of a file system returns: each of these has its own errors."""
    try:
        return within(TIMEOUT_S, work)
    except (OSError, ValueError):
        raise
    except Exception as error:
        raise Unread(f"{type(error).__name__}: {error}") from error


class _Stream(io.RawIOBase):
    """A file that is read in blocks, each within TIMEOUT_S."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def seek(self, offset: int, whence: int = 0) -> int:
        self._file.seek(offset, whence)
        return self.tell()

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), BLOCK_BYTES)

        def work(deadline: float) -> bytes:
            block = b""
            while len(block) < size and (more := self._file.read(size - len(block))):
                block += more
                if time.monotonic() > deadline:
                    raise TimeoutError
            return block

        try:
            block = within(TIMEOUT_S, work)
        except Exception as error:  # each file system has its own errors
            raise Unread(f"not readable to its end ({error or type(error).__name__})") from error
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def retried(function: Callable[[], T]) -> T:
    """Call a function again when the disk or the network fails. Raises the last error."""
    for attempt in range(1, TRIES):
        try:
            return function()
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            raise
        except OSError:
            time.sleep(WAIT_S * 2**attempt)
    return function()
