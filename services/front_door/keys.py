"""API keys: the file that holds them, hashed, and ``samclip keys``, which writes it.

A key a line, as HAProxy reads it: the front door looks up the hash of what a caller sends, and
finds who that is. A key has 256 random bits, so its plain sha256 tells nothing about it; and what
is compared is a hash, which a caller cannot steer, so the time that it takes tells nothing either.
"""

import argparse
import fcntl
import hashlib
import os
import re
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from samclip.cli import table

from services.request.callers import COMMON
from services.settings import Settings, SettingsError

SCOPES = {
    "read": "ask about images, search, and list what there is",
    "index": "add and replace images of collections, and delete them one by one",
    "admin": "delete whole collections",
}
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
SHORTEST = 20  # characters of a key that somebody else has made

_HEADER = "# sha256 of the key, name, scopes, tenant, requests a second, in flight (0: no limit)\n"


@dataclass(frozen=True)
class Key:
    """``sha256`` in lower-case hex. ``rate``: requests a second, ``inflight``: at the same time."""

    sha256: str
    name: str
    scopes: tuple[str, ...]
    tenant: str
    rate: int = 0
    inflight: int = 0

    @classmethod
    def parse(cls, line: str) -> Self:
        """Read a line of the file. Raises ValueError, which says what is wrong with it."""
        sha256, *fields = re.split("[ \t]+", line.strip(" \t"))  # as HAProxy reads it
        if not re.fullmatch("[0-9a-f]{64}", sha256) or len(fields) != 5:
            raise ValueError(
                "expected a hash of 64 hex digits, name, scopes, tenant and two numbers. Is it "
                "a key in the clear? `samclip keys add NAME --from-stdin` takes and hashes it"
            )
        name, scopes, tenant, rate, inflight = fields
        if unknown := set(scopes.split(",")) - SCOPES.keys():
            raise ValueError(f"no scope {', '.join(unknown)}, there are {', '.join(SCOPES)}")
        if not NAME.fullmatch(name) or not (tenant == COMMON or NAME.fullmatch(tenant)):
            raise ValueError("expected name and tenant of 1 to 64 letters, digits, . _ and -")
        if not (re.fullmatch("[0-9]{1,9}", rate) and re.fullmatch("[0-9]{1,9}", inflight)):
            raise ValueError("expected the limits as whole numbers, 0 for none")
        return cls(sha256, name, tuple(scopes.split(",")), tenant, int(rate), int(inflight))

    def __str__(self) -> str:
        scopes = ",".join(self.scopes)
        return f"{self.sha256} {self.name} {scopes} {self.tenant} {self.rate} {self.inflight}"


def digest(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def read(file: Path) -> list[Key]:
    """Read all keys of a file. Raises SettingsError, which names the line but never shows it."""
    try:
        lines = file.read_bytes().decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"api_keys_file {file} cannot be read: {error}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            found.append(Key.parse(line))
        except ValueError as error:
            raise SettingsError(f"line {number} of {file} is no API key of ours: {error}") from None
    for what in ("name", "sha256"):
        if len({getattr(key, what) for key in found}) < len(found):
            raise SettingsError(f"two API keys in {file} have the same {what}: remove one of them")
    return found


def write(file: Path, keys: Sequence[Key]) -> None:
    """Replace the file, whole or not at all; its owner and its rights stay as they are.

    Others than its owner cannot read a new one. Raises SettingsError.
    """
    partial = file.with_name(f".{file.name}.partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
        output.write(_HEADER + "".join(f"{key}\n" for key in keys))
    if file.exists():
        _dress_as(file, partial)
    partial.replace(file)


def _dress_as(file: Path, partial: Path) -> None:
    """Give a new file the owner and the rights of the one that it replaces."""
    held = file.stat()
    try:
        os.chown(partial, held.st_uid, held.st_gid)
    except PermissionError as error:
        partial.unlink()
        raise SettingsError(
            f"{file} belongs to user {held.st_uid} and group {held.st_gid}, who could not read it "
            "afterwards: change it as that user or as root"
        ) from error
    partial.chmod(held.st_mode & 0o777)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``samclip keys``; return the exit code."""
    args = _parser().parse_args(argv)
    try:
        file = args.file or Settings.load().api_keys_file
        if file is None:
            raise SettingsError("no file: name it with --file, or as SAMCLIP_API_KEYS_FILE")
        # A list needs no lock, and its folder may be mounted read-only.
        with nullcontext() if args.run is _list else _one_at_a_time(file):
            return int(args.run(file, args))
    except (SettingsError, OSError) as error:
        print(f"samclip keys: {error}", file=sys.stderr)
        return 1


@contextmanager
def _one_at_a_time(file: Path) -> Iterator[None]:
    """Wait for other processes that change this file: each would undo the other's change.

    A user who can open a file or folder can also lock it. The lock is therefore a file that other
    users cannot open.
    """
    descriptor = _open_lock(file)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _open_lock(file: Path) -> int:
    """Open the lock file beside ``file``; a new one belongs to the owner of the folder."""
    path, flags = file.with_name(f".{file.name}.lock"), os.O_RDWR | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(path, flags)
    folder = file.parent.stat()
    with suppress(PermissionError):  # only root can, and only root needs it
        os.chown(descriptor, folder.st_uid, folder.st_gid)
    return descriptor


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="samclip keys",
        description="The API keys of a service, which sees a change of their file at once.",
        epilog="To replace a key: add another one of the same tenant, then remove the old one.",
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--file", type=Path, metavar="FILE", help="default: the setting api_keys_file"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add = commands.add_parser("add", parents=[common], help="make a key, and print it this once")
    add.add_argument("name", metavar="NAME", help="of who will hold it")
    add.add_argument(
        "--scope",
        action="append",
        choices=SCOPES,
        help="; ".join(f"{scope}: {what}" for scope, what in SCOPES.items()) + " (read)",
    )
    add.add_argument(
        "--tenant",
        help="whose collections and images it reaches (NAME); "
        f"{COMMON}: what came in without any key",
    )
    add.add_argument("--rate", type=int, default=0, metavar="N", help="requests a second, at most")
    add.add_argument("--inflight", type=int, default=0, metavar="N", help="at the same time")
    add.add_argument("--from-stdin", action="store_true", help="take a key that there is already")
    add.set_defaults(run=_add)
    shown = commands.add_parser("list", parents=[common], help="show whose keys there are")
    shown.set_defaults(run=_list)
    remove = commands.add_parser("remove", parents=[common], help="let a key in no more")
    remove.add_argument("name", metavar="NAME")
    remove.set_defaults(run=_remove)
    return parser


def _add(file: Path, args: argparse.Namespace) -> int:
    held = read(file) if file.exists() else []
    if any(key.name == args.name for key in held):
        raise SettingsError(f"there is a key {args.name!r} already: give this one another name")
    secret = sys.stdin.readline().strip() if args.from_stdin else secrets.token_urlsafe(32)
    if len(secret) < SHORTEST:
        raise SettingsError(f"a key of {len(secret)} characters is guessed, give {SHORTEST} random")
    scopes = ",".join(dict.fromkeys(args.scope or ["read"]))
    fields = (args.name, scopes, args.tenant or args.name, str(args.rate), str(args.inflight))
    try:
        key = Key.parse(" ".join((digest(secret), *fields)))
    except ValueError as error:
        raise SettingsError(str(error)) from error
    write(file, [*held, key])
    if not args.from_stdin:
        print(secret)
    return 0


def _list(file: Path, args: argparse.Namespace) -> int:
    rows = [
        {
            "name": key.name,
            "scopes": ",".join(key.scopes),
            "tenant": key.tenant,
            "rate": key.rate,
            "inflight": key.inflight,
        }
        for key in read(file)
    ]
    print(table(rows))
    return 0


def _remove(file: Path, args: argparse.Namespace) -> int:
    held = read(file)
    left = [key for key in held if key.name != args.name]
    if len(left) == len(held):
        raise SettingsError(f"no key {args.name!r} in {file}: `samclip keys list` shows them")
    write(file, left)
    return 0


if __name__ == "__main__":
    sys.exit(main())
