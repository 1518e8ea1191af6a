"""Files and folders that other users of the machine cannot access."""

import os
import stat
from pathlib import Path

from samclip_core.io.files import OTHERS, make_private


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
