"""Files and folders that no other user of the machine may reach."""

import os
import stat
from contextlib import suppress
from pathlib import Path

OTHERS = stat.S_IRWXG | stat.S_IRWXO


def make_folder(folder: Path) -> None:
    """Make a folder for this user alone, and take all rights to an existing one from others.

    A folder of another owner, such as a volume that an operator has mounted for a group, keeps its
    rights. Raises OSError for a folder that all users may write to, as /tmp.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    ours = status.st_uid == os.geteuid()
    if status.st_mode & stat.S_ISVTX or (status.st_mode & stat.S_IWOTH and not ours):
        raise PermissionError(f"{folder} is shared by the users of this machine")
    if status.st_mode & OTHERS and ours:
        folder.chmod(0o700)


def close_files(folder: Path, *patterns: str) -> None:
    """Remove the rights of other users to files that match the patterns. Raises OSError.

    A file of another owner, as a restored backup may have, keeps its rights: only its owner can
    change them, and ``make_folder`` has closed the folder.
    """
    for pattern in patterns:
        for file in folder.glob(pattern):
            mode = stat.S_IMODE(file.stat().st_mode)
            if mode & OTHERS:
                with suppress(PermissionError):
                    file.chmod(mode & ~OTHERS)


def check_folder(folder: Path) -> None:
    """Raise PermissionError where another user may enter a folder, or put another in its place."""
    status = folder.stat()
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.geteuid() or mode & OTHERS:
        raise PermissionError(
            f"{folder} has mode {mode:04o} and user {status.st_uid}, expected 0700 and "
            f"{os.geteuid()}: another user could take over what runs from it"
        )
    for parent in folder.resolve().parents:
        mode = stat.S_IMODE(parent.stat().st_mode)
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise PermissionError(
                f"{parent} has mode {mode:04o}, so another user could replace {folder}: set "
                f"TMPDIR to a folder of your own, or `chmod +t {parent}`"
            )
