"""The ``samclip`` command: requests to a running service, and the tools to build and run one.

Requests need only the client. The other commands need optional dependencies, so their modules are
imported when they are called.
"""

import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import samclip
from samclip.cli import commands
from samclip.cli.usage import UsageError
from samclip.errors import ServiceError, Unauthenticated, plain

INTERRUPTED, CLOSED = 128 + signal.SIGINT, 128 + signal.SIGPIPE


def program() -> None:
    """Run the command of ``sys.argv``, and end with its exit status.

    Python would first wait for the threads of a request that has failed, was interrupted, or whose
    reader has gone: they may download or compute for a while, and a head of one's own for ever.
    """
    add_services(Path(samclip.__path__[0]))
    status = main()
    if status and not commands.PARTS.keys() & sys.argv[1:2]:
        os._exit(status)
    sys.exit(status)


def add_services(package: Path) -> None:
    """Let this process and its children import ``services`` and ``training``.

    In a clone they are in its root. Installed, they are below the ``package`` samclip, because
    other packages of their names may be beside it. The client alone has none.
    """
    for folder in (package / "_bundled", package.parents[1]):
        if (folder / "services/launch").is_dir():
            sys.path.insert(0, str(folder))
            before = os.environ.get("PYTHONPATH")
            os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{before}" if before else str(folder)
            return


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0: success. 1: failure. 2: usage error. 130: interrupted. 141: the output was closed.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may hold any bytes
    try:
        try:
            return _run(arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _discard(sys.stdout, sys.stderr)
        return CLOSED
    except UsageError as error:
        print(f"samclip: {plain(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk
        _discard(sys.stdout)
        print(f"samclip: {plain(str(error))}", file=sys.stderr)
        return 1


def _discard(*streams: TextIO) -> None:
    """Redirect output to /dev/null: Python would report the same error again at exit."""
    with open(os.devnull, "w") as nowhere:
        for stream in streams:
            os.dup2(nowhere.fileno(), stream.fileno())


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] in commands.PARTS:
        return commands.run(arguments[0], arguments[1:])
    if not arguments:
        print(commands.FIRST)
        return 0
    args = commands.parser().parse_args(arguments)
    try:
        status: int = args.run(args)
    except (BrokenPipeError, UsageError):
        raise
    except (ServiceError, OSError, ValueError) as error:
        print(f"samclip: {plain(_reason(error))}", file=sys.stderr)
        return 1
    return status


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, Unauthenticated):
        return f"{error}. Give the key with --api-key, or as SAMCLIP_API_KEY"
    return str(error)
