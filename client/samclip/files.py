"""Files that others may have placed or may serve, read within limits of kind, bytes and time."""

import errno
import os
import stat
import time
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import BinaryIO, TypeVar

MAX_FILE_BYTES = 64 * 2**20  # a request's maximum size
TIMEOUT_S = 30.0  # of a whole image
_CHUNK_BYTES = 2**20
T = TypeVar("T")


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return a regular file of this machine, of up to MAX_FILE_BYTES.

    Raises OSError if it cannot be read, TimeoutError after TIMEOUT_S, and ValueError if it is too
    large or no regular file.
    """

    def work(deadline: float) -> bytes:
        with open_regular(path) as file:
            return read_to_end(file.read, deadline)

    try:
        return within(TIMEOUT_S, work)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading; what is there is checked once it is open.

    Raises OSError, and ValueError for a folder, pipe, socket or device: reading may never end.
    """
    return open(path, "rb", opener=_opened)


def _opened(path: str, flags: int) -> int:
    waits_for_nobody = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
    descriptor = os.open(path, flags | waits_for_nobody)
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind):
        return descriptor
    os.close(descriptor)
    found = "a folder" if stat.S_ISDIR(kind) else "a pipe, socket or device"
    raise ValueError(f"{found}, expected a regular file")


def within(seconds: float, work: Callable[[float], T]) -> T:
    """Call a function with its deadline, on time.monotonic(); return what it returns.

    It runs in a thread of its own, which is left alone at the deadline: a disk or a server may
    never answer. Raises TimeoutError, and what the function raises.
    """
    done, deadline = Future[T](), time.monotonic() + seconds

    def run() -> None:
        try:
            done.set_result(work(deadline))
        except BaseException as error:
            done.set_exception(error)

    Thread(target=run, daemon=True).start()
    try:
        return done.result(seconds)
    except TimeoutError:
        raise TimeoutError(errno.ETIMEDOUT, f"no file within {seconds:g} s") from None


def read_to_end(read: Callable[[int], bytes | None], deadline: float, stated: int = 0) -> bytes:
    """Return all that is left to read, of up to MAX_FILE_BYTES.

    read: returns some bytes, or none at the end. stated: how many there should be. Raises
    TimeoutError after the deadline, OSError if fewer were read than stated, ValueError if there
    are too many.
    """
    file = bytearray()
    while max(stated, len(file)) <= MAX_FILE_BYTES:
        if time.monotonic() > deadline:
            raise TimeoutError
        chunk = read(min(_CHUNK_BYTES, MAX_FILE_BYTES + 1 - len(file)))
        if chunk is None:
            raise BlockingIOError(errno.EAGAIN, "a file that waits for others")
        file += chunk
        if not chunk:
            if len(file) < stated:
                raise OSError(f"the connection broke after {len(file):,} of {stated:,} bytes")
            return bytes(file)
    raise ValueError(f"a file larger than {MAX_FILE_BYTES // 2**20} MiB")
