"""Reload changed API keys and certificates while the front door runs; report clock changes."""

import logging
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from samclip_core import guarded
from services.front_door import keys
from services.settings import Settings

LOOK_S = 1.0
"""Interval between two checks of the files."""
STEPS = 20
"""Looks at HAProxy in that interval."""
LINES = 50
"""Keys per HAProxy command, which is at most 16 KB long."""
STEP_S = 10.0
"""A clock that is set back by more than this is reported."""

logger = logging.getLogger(__name__)


def watch(
    process: subprocess.Popen[bytes],
    settings: Settings,
    admin: Path,
    pause: Callable[[float], None] = time.sleep,
) -> int:
    """Load changed keys and certificates into HAProxy until it ends; return its exit code.

    Starts once HAProxy listens at ``admin``. Logs an error if the clock is set back. ``pause``
    waits for so many seconds, or raises.
    """
    handlers = {settings.api_keys_file: load_keys, settings.tls_cert_file: load_certificate}
    states: dict[Path, tuple[int, ...]] = {}
    ahead_s = _clock_ahead_s()
    while True:
        ahead_s, before_s = _clock_ahead_s(), ahead_s
        if (back_s := before_s - ahead_s) > STEP_S:
            # Ray's periodic timers and Serve's controller wait until a time of the wall clock.
            until = datetime.fromtimestamp(time.time() + back_s).strftime("%H:%M:%S")
            logger.error(
                "the clock was set back by %.0f s: requests are served as before, but Ray will not "
                "replace failed processes until %s; restart the service to fix this now",
                back_s,
                until,
            )
        for file, load in handlers.items() if admin.exists() else ():
            if file is not None and (state := _state(file)) != states.get(file):
                states[file] = state
                try:
                    load(admin, file)
                except (OSError, ValueError, RuntimeError) as error:
                    logger.error("%s; the previous keys or certificate stay in use", error)
        for _ in range(STEPS):
            if (code := process.poll()) is not None:
                return code
            pause(LOOK_S / STEPS)


def load_keys(admin: Path, file: Path) -> None:
    """Replace all keys at once. Raises SettingsError if the file is invalid."""
    lines = [str(key) for key in keys.read(file)]
    version = _done(send(admin, f"prepare map {file}"), "New version created: ")
    for start in range(0, len(lines), LINES):
        some = "\n".join(lines[start : start + LINES])
        _done(send(admin, f"add map @{version} {file} <<\n{some}"))
    _done(send(admin, f"commit map @{version} {file}"))
    logger.info("%d API keys loaded", len(lines))


def load_certificate(admin: Path, file: Path) -> None:
    """Replace the certificate and its key for new connections, and publish when it ends."""
    text = guarded.read(file).decode(errors="replace")  # comments may have any encoding
    content = "\n".join(line for line in text.splitlines() if line.strip())
    send(admin, f"abort ssl cert {file}")  # one that HAProxy refused would keep this one out
    _done(send(admin, f"set ssl cert {file} <<\n{content}"), "Transaction created")
    _done(send(admin, f"commit ssl cert {file}"), "Committing")
    about = send(admin, f"show ssl cert {file}")
    (end,) = re.findall(r"^not ?after: (.*)$", about, re.MULTILINE | re.IGNORECASE)
    variable = f"proc.certificate_end int({ssl.cert_time_to_seconds(end)})"
    _done(send(admin, f"experimental-mode on; set var {variable}"))


def send(admin: Path, command: str) -> str:
    """Send HAProxy a command and return its answer. Raises OSError while it does not listen."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(5)
        line.connect(str(admin))
        # An empty line ends a payload.
        line.sendall(command.encode() + (b"\n\n" if "\n" in command else b"\n"))
        return b"".join(iter(lambda: line.recv(65536), b"")).decode().strip()


def _done(answer: str, expected: str = "") -> str:
    """Return an answer without its expected prefix. Raises RuntimeError for any other answer."""
    if not answer.startswith(expected) or (answer and not expected):
        raise RuntimeError(f"HAProxy rejected the change of keys or certificate: {answer[:200]!r}")
    return answer.removeprefix(expected)


def _clock_ahead_s() -> float:
    """Return how far the wall clock is ahead of the monotonic clock."""
    return time.time() - time.monotonic()


def _state(file: Path) -> tuple[int, ...]:
    """Return a value that changes when the file is replaced or written; () if it is missing."""
    try:
        status = file.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_mtime_ns, status.st_size
