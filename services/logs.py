"""The log of the services: JSON, one object a line, each with the id of the request it is about."""

import json
import logging
from datetime import UTC, datetime

from services import observe

_handler = logging.StreamHandler()


class JsonLines(logging.Formatter):
    """A record with what its ``extra`` gave as ``fields``; nothing that a request held."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": observe.request_id.get(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def start(level: str) -> None:
    """Write what is at least of this level to standard error; again to change the level."""
    logger = logging.getLogger("services")
    _handler.setFormatter(JsonLines())
    logger.addHandler(_handler)
    logger.setLevel(level)
