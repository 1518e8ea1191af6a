"""How a service in the foreground ends: when a signal asks for it, in time, and with a sentence."""

import io
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from select import select
from time import monotonic
from typing import Any

LIMIT_S = 60.0
"""Time to end. Requests in flight get ten seconds of it; a busy machine needs more for Ray."""
TWICE_S = 1.0
"""A second Ctrl-C within this time may be the first one, which a launcher forwards as well."""
NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
logger = logging.getLogger("services.stop")
logger.setLevel(logging.INFO)  # the last sentence is said at every log_level


class Stopped(Exception):
    """A signal asks this process to end; the message is its last sentence."""


class Stop:
    """Whether this process shall end. A signal raises nothing: it could leave a lock taken."""

    def __init__(self, command: str, directory: Path) -> None:
        """``directory``, the process's own, is removed if its children must be killed."""
        self._command, self._directory = command, directory
        self._begun, self._ended = threading.Event(), threading.Event()
        self._by = ""
        self._reader, self._writer = os.pipe()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals in this context, also those that a shell ignores for background jobs."""
        os.set_blocking(self._writer, False)
        fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        before = self.take_signals()
        watching = threading.Thread(target=self._watch, daemon=True, name="watches signals")
        watching.start()
        try:
            yield
        finally:
            self._ended.set()
            self.begin()
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(fd)
            watching.join()
            os.close(self._reader)
            os.close(self._writer)

    def take_signals(self) -> dict[int, Any]:
        """Note signals from now on; return the handlers of before.

        Ray's own one, set as it starts, would abort this process three seconds after SIGTERM.
        """
        return {number: signal.signal(number, lambda *_: None) for number in NAMES}

    def wait(self, seconds: float = 0.0) -> None:
        """Wait, at most until a signal. Raises Stopped after one."""
        if self._begun.wait(seconds):
            raise Stopped(f"stopped by {self._by}")

    def begin(self) -> None:
        """Allow this process LIMIT_S to end, as a signal does; a second call changes nothing."""
        os.write(self._writer, b"\0")

    def _watch(self) -> None:
        """Wait for the first signal or ``begin``.

        Kill what has not ended LIMIT_S later, or as soon as Ctrl-C is pressed again.
        """
        while (number := os.read(self._reader, 1)[0]) not in (0, *NAMES):
            pass
        self._by = NAMES.get(number, "")  # type: ignore[call-overload]
        self._begun.set()
        begun = monotonic()
        while (left_s := begun + LIMIT_S - monotonic()) > 0:
            number = os.read(self._reader, 1)[0] if select([self._reader], [], [], left_s)[0] else 0
            if self._ended.is_set():
                return
            if number == signal.SIGINT and monotonic() - begun > TWICE_S:
                self.kill("Ctrl-C was pressed again, so its processes were killed")
        self.kill(f"it did not end within {LIMIT_S:g} s, so its processes were killed")

    def kill(self, reason: str) -> None:
        """Kill the children of this process, say why, and end with exit code 1."""
        import psutil  # which Ray brings

        sys.stdout.flush()
        sys.stdout = sys.stderr = io.StringIO()  # others print as they end: the reason is last
        # HAProxy ends with this process, whose main thread would report an earlier end.
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # it has ended
                if child.name() != "haproxy":
                    child.kill()
        shutil.rmtree(self._directory, ignore_errors=True)
        os._exit(self.say(RuntimeError(reason)))

    def say(self, reason: Exception) -> int:
        """Say why this process ends, and return its exit code: 0 after a signal.

        On a terminal it is a sentence, elsewhere a line of the log.
        """
        stopped = isinstance(reason, Stopped)
        if sys.__stderr__ is not None and sys.__stderr__.isatty():
            print(f"{self._command}: {reason}", file=sys.__stderr__, flush=True)
        else:
            logger.log(logging.INFO if stopped else logging.ERROR, "%s", reason)
        return 0 if stopped else 1
