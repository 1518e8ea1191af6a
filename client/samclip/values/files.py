"""Files that somebody else may have put there."""

import io
import os
import stat


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a regular file for reading; the open file is checked, not its path.

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
    raise ValueError(f"{path} is {found}, expected a regular file")
