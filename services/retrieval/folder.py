"""The folder of the collections: closed to other users, and open in one service at a time."""

import fcntl
import os
import socket
from contextlib import suppress
from io import FileIO
from pathlib import Path

from services import private_files

SERVICE, REPLICA = "service.lock", "replica.lock"
"""What `samclip serve` holds while it runs, so that a second one is refused at its start, and what
the process that has the files open holds: that one is replaced while the service runs."""


class FolderError(Exception):
    """The folder cannot be used. The message names it, so only operators may see the message."""


def take(folder: Path, lock: str) -> FileIO:
    """Make the folder, close it to other users, and hold one of its locks.

    The lock is held until the file that is returned is closed, or its process has ended. Raises
    FolderError.
    """
    try:
        private_files.make_folder(folder)
        file = FileIO(os.open(folder / lock, os.O_RDWR | os.O_CREAT, 0o600), "r+")
    except OSError as error:
        raise FolderError(
            f"index_dir {folder} cannot be used ({error}): collections are kept in a folder of "
            "this user alone, so name another (SAMCLIP_INDEX_DIR)"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = file.read().decode().strip() or "another process"
        file.close()
        raise FolderError(
            f"index_dir {folder} is in use by {holder} ({error.strerror}): stop that service, or "
            "name another folder for this one (SAMCLIP_INDEX_DIR)"
        ) from error
    with suppress(OSError):  # a full disk: the lock holds, and its holder has no name
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return file
