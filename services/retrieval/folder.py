"""The folder of the collections: closed to other users, and used by one service at a time."""

import fcntl
import os
import socket
from contextlib import suppress
from io import FileIO
from pathlib import Path

from services import private_files

SERVICE, REPLICA = "service.lock", "replica.lock"
"""Lock files. `samclip serve` locks the first, so that a second service is refused at its start.
The process that opens the collections, which can be replaced while the service runs, locks the
second."""


class FolderError(Exception):
    """The folder cannot be used. The message contains its path and is only for operators."""


def take(folder: Path, lock: str) -> FileIO:
    """Create the folder, close it to other users, and take one of its locks.

    The lock is held until the returned file is closed or its process ends. Raises FolderError if
    the folder cannot be used or is locked.
    """
    try:
        private_files.make_folder(folder)
        file = FileIO(os.open(folder / lock, os.O_RDWR | os.O_CREAT, 0o600), "r+")
    except OSError as error:
        raise FolderError(
            f"index_dir {folder} cannot be used ({error}): choose a folder that belongs to this "
            "user alone (SAMCLIP_INDEX_DIR)"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = _name(file)
        file.close()
        raise FolderError(
            f"index_dir {folder} is in use by {holder} ({error.strerror}): stop that service, or "
            "choose another folder for this one (SAMCLIP_INDEX_DIR)"
        ) from error
    with suppress(OSError):  # on a full disk, only the holder's name is missing
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return file


def holder(folder: Path) -> str:
    """Return the name of the service that uses the folder; "" if none does. Raises OSError."""
    try:
        file = FileIO(folder / SERVICE)
    except FileNotFoundError:
        return ""
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _name(file)
    return ""


def _name(file: FileIO) -> str:
    return file.read().decode().strip() or "another process"
