"""Files that are replaced as a whole, and folders that no other user can replace."""

import errno
import glob
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

OTHERS = stat.S_IRWXG | stat.S_IRWXO
LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
"""Longest path of a socket, in bytes."""
NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
"""How file systems refuse to lock a folder: NFS locks only what is open for writing."""


@contextmanager
def replacing(path: Path, mode: int | None = None) -> Iterator[Path]:
    """Yield a path to write to; afterwards that file replaces ``path``, or the target of a link.

    With ``mode``, a new file of these permissions is there already. If the block raises, ``path``
    stays as it was and the new file is removed. Raises OSError if ``path`` is no regular file.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "not a regular file: name another one", str(path))
    partial = path.with_name(f".{path.name}.partial")
    try:
        if mode is not None:
            partial.unlink(missing_ok=True)
            os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        yield partial
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder to write to; afterwards it replaces ``path``, a folder or nothing.

    If the block raises, ``path`` stays as it was. Of several at a time, the last one stays. What a
    killed process has left beside it is removed where the file system has locks, which show that
    nobody uses it; if that was about to replace ``path``, the old folder comes back.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.partial-????????"):  # as mkdtemp names
        with suppress(OSError), locked(left, _refuse) as alone:
            if alone and any(left.iterdir()):  # else its process may be about to lock it
                _clear(left, path)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
    with locked(scratch):
        try:
            (scratch / "new").mkdir()
            yield scratch / "new"
            with suppress(FileNotFoundError):
                path.rename(scratch / "old")
            try:
                (scratch / "new").rename(path)
            except OSError as error:  # another one may have replaced it in between: it is the last
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
        finally:
            _clear(scratch, path)


def _clear(scratch: Path, path: Path) -> None:
    """Remove a scratch folder, and put back what was moved into it and not replaced."""
    if (scratch / "new").exists() and not path.exists():
        with suppress(FileNotFoundError):
            (scratch / "old").rename(path)
    shutil.rmtree(scratch, ignore_errors=True)


def _refuse() -> None:
    raise BlockingIOError


@contextmanager
def locked(path: Path, waits: Callable[[], object] = lambda: None) -> Iterator[bool]:
    """Wait until no other process changes a file or folder that also uses this.

    ``waits`` is called before a wait, and may raise. Yields False, without a wait, on Windows and
    where the file system has no such locks.
    """
    if sys.platform == "win32":
        yield False
        return
    import fcntl

    descriptor, alone = os.open(path, os.O_RDONLY | os.O_NONBLOCK), True
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waits()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            alone = False
        yield alone
    finally:
        os.close(descriptor)


def user() -> int:
    """Return the user of this process; 0 on systems without such numbers."""
    return int(getattr(os, "geteuid", int)())


def make_private(folder: Path) -> None:
    """Make a folder and the parents that it lacks, for this user alone. Raises OSError."""
    for each in reversed((folder, *folder.parents)):
        if not each.is_dir():
            each.mkdir(mode=0o700, exist_ok=True)
    check_parents(folder)


def check_parents(folder: Path) -> None:
    """Raise PermissionError if another user could put a folder of their own in this one's place.

    Trusted are root, this process's user and primary group, and the owner of the folder.
    """
    users, groups = {0, user(), folder.stat().st_uid}, {0, getattr(os, "getegid", int)()}
    for parent in _ways(folder):
        status = parent.lstat()
        shared = status.st_mode & (stat.S_IWOTH | (0 if status.st_gid in groups else stat.S_IWGRP))
        # Where it is sticky, as /tmp is, only owners rename what is in it. A link has no mode.
        free = shared and not status.st_mode & stat.S_ISVTX and not stat.S_ISLNK(status.st_mode)
        if status.st_uid not in users or free:
            raise PermissionError(
                f"{parent} has mode {stat.S_IMODE(status.st_mode):04o} and user {status.st_uid}, "
                f"so another user could replace {folder}: choose a folder below private ones"
            )


def _ways(folder: Path) -> Iterator[Path]:
    """Yield the folders above an existing one, and each link on the way with those above it."""
    for path in (folder.absolute(), *folder.absolute().parents):
        if path.is_symlink():
            yield path
            yield from _ways(path.parent / path.readlink())
        elif path != folder.absolute():
            yield path


def check_folder(folder: Path) -> None:
    """Raise PermissionError if another user can access or replace the folder."""
    status = folder.stat()
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != user() or mode & OTHERS:
        raise PermissionError(
            f"{folder} has mode {mode:04o} and user {status.st_uid}, expected 0700 and "
            f"{user()}: another user could take over processes that use it"
        )
    check_parents(folder)


@contextmanager
def socket_folder(below: int) -> Iterator[Path]:
    """Make a folder of this user alone for sockets, whose paths add ``below`` bytes to its own.

    It is in TMPDIR, or in /tmp if the path of TMPDIR is too long for them. It is removed later.
    Raises PermissionError if another user could replace it, OSError if it cannot be made.
    """
    place = os.path.realpath(tempfile.gettempdir())
    if len(os.fsencode(place)) + len("/samclip-01234567") + below > LONGEST_SOCKET:
        place = os.path.realpath("/tmp")
    with tempfile.TemporaryDirectory(
        prefix="samclip-", dir=place, ignore_cleanup_errors=True
    ) as made:
        check_folder(Path(made))
        yield Path(made)
