"""API keys: the file of their hashes, and ``samclip keys``, which changes it.

The file has one key per line, in HAProxy's map format: the front door looks up the hash of the key
that a client sends. Keys have 256 random bits, so a plain sha256 is enough. The lookup compares
hashes, which a client cannot choose, so its timing reveals nothing about the keys.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from samclip.cli.formats import table
from samclip.cli.usage import Parser

from samclip_core import guarded
from samclip_core.io.files import replacing
from services.request.context import COMMON, NAME
from services.settings import Settings, SettingsError

SCOPES = {
    "read": "query images, search, and list collections and items",
    "index": "add, replace and delete images of collections",
    "admin": "delete whole collections",
}
SHORTEST = 20  # characters of a key from --from-stdin
MOST = 10**9  # requests that a limit may allow

_HEADER = "# sha256 of the key, name, scopes, tenant, requests/s, in flight (0: no limit)\n"


@dataclass(frozen=True)
class Key:
    """One line of the file: the key's ``sha256`` in lower-case hex, its owner and its limits.

    ``rate`` limits requests per second, ``inflight`` concurrent requests; 0 means no limit.
    """

    sha256: str
    name: str
    scopes: tuple[str, ...]
    tenant: str
    rate: int = 0
    inflight: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for what the file cannot hold."""
        if unknown := set(self.scopes) - SCOPES.keys():
            raise ValueError(f"unknown scope {', '.join(unknown)}, expected {', '.join(SCOPES)}")
        if not NAME.fullmatch(self.name) or not (
            self.tenant == COMMON or NAME.fullmatch(self.tenant)
        ):
            raise ValueError("expected a name and a tenant of 1 to 64 letters, digits, . _ and -")
        if not (0 <= self.rate < MOST and 0 <= self.inflight < MOST):
            raise ValueError("expected whole numbers as limits, 0 for no limit")

    @classmethod
    def parse(cls, line: str) -> Self:
        """Parse a line of the file. Raises ValueError if it is invalid."""
        sha256, *fields = re.split("[ \t]+", line.strip(" \t"))  # as HAProxy reads it
        if not re.fullmatch("[0-9a-f]{64}", sha256) or len(fields) != 5:
            raise ValueError(
                "expected a hash of 64 hex digits, name, scopes, tenant and two numbers. If it is "
                "a key in the clear, run `samclip keys add NAME --from-stdin`, which hashes it"
            )
        name, scopes, tenant, *limits = fields
        numbers = [int(text) if re.fullmatch("[0-9]{1,9}", text) else -1 for text in limits]
        return cls(sha256, name, tuple(scopes.split(",")), tenant, *numbers)

    def __str__(self) -> str:
        scopes = ",".join(self.scopes)
        return f"{self.sha256} {self.name} {scopes} {self.tenant} {self.rate} {self.inflight}"


def digest(key: str) -> str:
    """Return the hash under which the file lists ``key``."""
    return hashlib.sha256(key.encode()).hexdigest()


def read(file: Path) -> list[Key]:
    """Read all keys of a file.

    Raises SettingsError, which names an invalid line but never shows its text.
    """
    try:
        lines = guarded.read(file).decode().split("\n")
    except (OSError, ValueError) as error:
        hint = f": let user {os.getuid()} read it" if isinstance(error, PermissionError) else ""
        raise SettingsError(f"api_keys_file {file} cannot be read: {error}{hint}") from error
    keys = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            keys.append(Key.parse(line))
        except ValueError as error:
            raise SettingsError(f"line {number} of {file} is no valid API key: {error}") from None
    for what in ("name", "sha256"):
        if len({getattr(key, what) for key in keys}) < len(keys):
            raise SettingsError(f"two API keys in {file} have the same {what}: remove one of them")
    return keys


def write(file: Path, keys: Sequence[Key]) -> None:
    """Replace the file atomically; keep its owner and permissions.

    Only its owner can read a new file. Raises SettingsError if the owner cannot be kept.
    """
    with replacing(file, 0o600) as partial:
        partial.write_text(_HEADER + "".join(f"{key}\n" for key in keys))
        if file.exists():
            _dress_as(file, partial)


def _dress_as(file: Path, partial: Path) -> None:
    """Give a new file the owner and the permissions of the file that it replaces."""
    status = file.stat()
    try:
        os.chown(partial, status.st_uid, status.st_gid)
    except PermissionError as error:
        raise SettingsError(
            f"{file} belongs to user {status.st_uid} and group {status.st_gid}, which could not "
            "read a file written by this user: change it as that user or as root"
        ) from error
    partial.chmod(status.st_mode & 0o777)


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        file = args.file or Settings.load().api_keys_file
        if file is None:
            raise SettingsError("no file of API keys: set --file or SAMCLIP_API_KEYS_FILE")
        # `list` needs no lock, and the folder may be mounted read-only.
        with nullcontext() if args.run is _list else _one_at_a_time(file):
            return int(args.run(file, args))
    except (SettingsError, OSError) as error:
        print(f"samclip keys: {error}", file=sys.stderr)
        return 1


@contextmanager
def _one_at_a_time(file: Path) -> Iterator[None]:
    """Lock the file against changes by other processes while the context lasts.

    A user who can open a file or folder can also lock it, so the lock is a separate file that other
    users cannot open. The folder's owner becomes its owner.
    """
    path, flags = file.with_name(f".{file.name}.lock"), os.O_RDWR | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
        folder = file.parent.stat()
        with suppress(PermissionError):  # only root may change the owner
            os.chown(descriptor, folder.st_uid, folder.st_gid)
    except FileExistsError:
        descriptor = os.open(path, flags)
    with open(descriptor) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def parser() -> Parser:
    made = Parser(
        prog="samclip keys",
        description="Manage the API keys of a service. A running service reloads a changed file.\n"
        "To replace a key, add another one of the same tenant, then remove the old one.",
        examples=[
            "samclip keys add ann --scope read --scope index --file keys.map",
            "samclip keys list --file keys.map",
        ],
    )
    common = Parser(add_help=False)
    common.add_argument(
        "--file", type=Path, metavar="FILE", help="default: the setting api_keys_file"
    )
    commands = made.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add = commands.add_parser(
        "add",
        parents=[common],
        help="make a key and print it once",
        examples=["samclip keys add ann", "samclip keys add bob --tenant lab --rate 10"],
    )
    add.add_argument("name", metavar="NAME", help="the key's owner")
    add.add_argument(
        "--scope",
        action="append",
        choices=SCOPES,
        help="; ".join(f"{scope}: {what}" for scope, what in SCOPES.items()) + " (read)",
    )
    add.add_argument(
        "--tenant",
        help="tenant whose collections and images the key can use (NAME); "
        f"{COMMON}: those added without a key",
    )
    add.add_argument("--rate", type=int, default=0, metavar="N", help="max requests per second")
    add.add_argument("--inflight", type=int, default=0, metavar="N", help="max requests in flight")
    add.add_argument("--from-stdin", action="store_true", help="read an existing key")
    add.set_defaults(run=_add)
    shown = commands.add_parser(
        "list",
        parents=[common],
        help="list the keys",
        examples=["samclip keys list", "samclip keys list --file keys.map"],
    )
    shown.set_defaults(run=_list)
    remove = commands.add_parser(
        "remove",
        parents=[common],
        help="revoke a key",
        examples=["samclip keys remove ann", "samclip keys remove ann --file keys.map"],
    )
    remove.add_argument("name", metavar="NAME")
    remove.set_defaults(run=_remove)
    return made


def _add(file: Path, args: argparse.Namespace) -> int:
    existing = read(file) if file.exists() else []
    if any(key.name == args.name for key in existing):
        raise SettingsError(f"a key {args.name!r} exists already: choose another name")
    secret = sys.stdin.readline().strip() if args.from_stdin else secrets.token_urlsafe(32)
    if len(secret) < SHORTEST:
        raise SettingsError(
            f"a key of {len(secret)} characters is too short: give {SHORTEST} random characters"
        )
    scopes = tuple(dict.fromkeys(args.scope or ["read"]))
    tenant = args.tenant or args.name
    try:
        key = Key(digest(secret), args.name, scopes, tenant, args.rate, args.inflight)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    write(file, [*existing, key])
    if not args.from_stdin:
        print(secret)
    return 0


def _list(file: Path, args: argparse.Namespace) -> int:
    rows = [asdict(key) | {"scopes": ",".join(key.scopes)} for key in read(file)]
    print(table([{name: row[name] for name in row if name != "sha256"} for row in rows]))
    return 0


def _remove(file: Path, args: argparse.Namespace) -> int:
    existing = read(file)
    remaining = [key for key in existing if key.name != args.name]
    if len(remaining) == len(existing):
        raise SettingsError(f"no key {args.name!r} in {file}: `samclip keys list` lists the keys")
    write(file, remaining)
    return 0


if __name__ == "__main__":
    sys.exit(main())
