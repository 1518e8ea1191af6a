"""The log of the services: one JSON object per line, with the id of the request."""

import contextlib
import io
import json
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the current request."""

_handler = logging.StreamHandler()


class JsonLines(logging.Formatter):
    """Formats a record with the ``fields`` of its ``extra``; never with a request's content."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": request_id.get(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)  # ASCII: any stream accepts it, even a lone surrogate


class JsonStream(io.TextIOBase):
    """Standard output or error for libraries that print: each line becomes JSON."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._begun = threading.local()  # a line without its end, which ``print`` writes separately

    def write(self, text: str) -> int:
        begun = getattr(self._begun, "text", "")
        *lines, self._begun.text = (begun + text).split("\n")
        for line in filter(str.strip, lines):
            self._stream.write(f"{as_json(line)}\n")
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()


@contextmanager
def only_json() -> Iterator[None]:
    """Write only JSON to standard output and error within this context."""
    out, error = JsonStream(sys.stdout), JsonStream(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        yield


def as_json(line: str) -> str:
    """Return a line that is a JSON object unchanged, any other as the message of a record."""
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(json.loads(line), dict):
            return line
    record = {"name": "output", "levelname": "INFO", "msg": line}
    return JsonLines().format(logging.makeLogRecord(record))


def start(level: str) -> None:
    """Log to standard error from this level up; call again to change the level."""
    logger = logging.getLogger("services")
    _handler.setFormatter(JsonLines())
    logger.addHandler(_handler)
    logger.setLevel(level)
