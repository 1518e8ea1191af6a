"""What changes while a service is open: keys and certificates with their files, and the clock."""

import logging
import socket
import subprocess
import time
from datetime import datetime
from pathlib import Path

from services.front_door import keys
from services.settings import Settings, SettingsError

LOOK_S = 1.0
"""Between two looks at the files."""
LINES = 50
"""Of keys in one command to HAProxy, which takes 16 KB at once."""
STEP_S = 10.0
"""A clock that is set back by more than this is told of."""

logger = logging.getLogger(__name__)


def watch(process: subprocess.Popen[bytes], settings: Settings, admin: Path) -> int:
    """Hand changed keys and certificates to HAProxy until it ends; return its exit code.

    Tells meanwhile of a clock that was set back.
    """
    handlers = {settings.api_keys_file: hand_in_keys, settings.tls_cert_file: hand_in_certificate}
    seen: dict[Path, tuple[int, ...]] = {}
    ahead_s = _clock_ahead_s()
    while True:
        ahead_s, before_s = _clock_ahead_s(), ahead_s
        if before_s - ahead_s > STEP_S:
            _tell_of_step(before_s - ahead_s)
        for file, hand_in in handlers.items():
            if file is not None and (state := _state(file)) != seen.get(file):
                seen[file] = state
                try:
                    hand_in(admin, file)
                except (SettingsError, OSError, RuntimeError) as error:
                    logger.error("%s; what was there before goes on", error)
        try:
            return process.wait(LOOK_S)
        except subprocess.TimeoutExpired:
            continue


def hand_in_keys(admin: Path, file: Path) -> None:
    """Replace all keys at once. Raises SettingsError for a file that is not right."""
    lines = [str(key) for key in keys.read(file)]
    version = _done(tell(admin, f"prepare map {file}"), "New version created: ")
    for start in range(0, len(lines), LINES):
        some = "\n".join(lines[start : start + LINES])
        _done(tell(admin, f"add map @{version} {file} <<\n{some}"))
    _done(tell(admin, f"commit map @{version} {file}"))
    logger.info("%d API keys are in use now", len(lines))


def hand_in_certificate(admin: Path, file: Path) -> None:
    """Replace the certificate and its key for new connections."""
    content = "\n".join(line for line in file.read_text().splitlines() if line.strip())
    _done(tell(admin, f"set ssl cert {file} <<\n{content}"), "Transaction created")
    _done(tell(admin, f"commit ssl cert {file}"), "Committing")


def tell(admin: Path, command: str) -> str:
    """HAProxy's answer to a command. Raises OSError while it does not listen."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(5)
        line.connect(str(admin))
        # An empty line ends what is sent with a command.
        line.sendall(command.encode() + (b"\n\n" if "\n" in command else b"\n"))
        return b"".join(iter(lambda: line.recv(65536), b"")).decode().strip()


def _done(answer: str, expected: str = "") -> str:
    """What follows the expected beginning of an answer. Raises RuntimeError for another answer."""
    if not answer.startswith(expected) or (answer and not expected):
        raise RuntimeError(f"HAProxy answers {answer[:200]!r} where keys or certificates change")
    return answer.removeprefix(expected)


def _clock_ahead_s() -> float:
    """How far the wall clock is ahead of one that nobody sets."""
    return time.time() - time.monotonic()


def _tell_of_step(back_s: float) -> None:
    # Ray's periodic timers and Serve's controller wait for a time of the wall clock.
    logger.error(
        "the clock was set back by %.0f s: requests are answered as before, but Ray replaces "
        "nothing that fails until %s; start the service again to have that back at once",
        back_s,
        datetime.fromtimestamp(time.time() + back_s).strftime("%H:%M:%S"),
    )


def _state(file: Path) -> tuple[int, ...]:
    """What changes whenever a file is replaced or written; the same while it is gone."""
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size
