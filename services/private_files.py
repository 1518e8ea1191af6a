"""Files and folders that other users of the machine cannot access."""

import os
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from samclip_core.io.files import check_parents, make_private

OTHERS = stat.S_IRWXG | stat.S_IRWXO
LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
"""Longest path of a socket, in bytes."""
IN_RAY = len("/session_2026-01-01_00-00-00_123456_1234567/sockets/plasma_store")
"""Longest path of a socket in Ray's folder."""


def make_folder(folder: Path) -> None:
    """Make a folder that only this user can access, or make an existing one private.

    A folder of another owner, such as a volume mounted for a group, keeps its permissions. Raises
    OSError for a folder that all users can write to, such as /tmp, or that others could replace.
    """
    make_private(folder)
    status = folder.stat()
    ours = status.st_uid == os.geteuid()
    if status.st_mode & stat.S_ISVTX or (status.st_mode & stat.S_IWOTH and not ours):
        raise PermissionError(f"{folder} is shared by all users of this machine: choose another")
    if status.st_mode & OTHERS and ours:
        folder.chmod(0o700)


def socket_folder(below: int) -> tempfile.TemporaryDirectory[str]:
    """Return a new folder of this user alone, for sockets whose paths add ``below`` bytes to it.

    It is in TMPDIR, or in /tmp if the path of TMPDIR is too long for them.
    """
    place = tempfile.gettempdir()
    if len(os.fsencode(place)) + len("/samclip-01234567") + below > LONGEST_SOCKET:
        place = "/tmp"
    return tempfile.TemporaryDirectory(prefix="samclip-", dir=place, ignore_cleanup_errors=True)


def close_files(folder: Path, *patterns: str) -> None:
    """Remove other users' permissions on files that match the patterns. Raises OSError.

    A file of another owner, such as a restored backup, keeps its permissions: only its owner can
    change them, and ``make_folder`` has made the folder private.
    """
    for pattern in patterns:
        for file in folder.glob(pattern):
            mode = stat.S_IMODE(file.stat().st_mode)
            if mode & OTHERS:
                with suppress(PermissionError):
                    file.chmod(mode & ~OTHERS)


def check_folder(folder: Path) -> None:
    """Raise PermissionError if another user can access or replace the folder."""
    status = folder.stat()
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.geteuid() or mode & OTHERS:
        raise PermissionError(
            f"{folder} has mode {mode:04o} and user {status.st_uid}, expected 0700 and "
            f"{os.geteuid()}: another user could take over processes that use it"
        )
    check_parents(folder)
