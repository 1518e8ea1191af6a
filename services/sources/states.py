"""The state of a file: its size and time, or its ETag, which tell a new version from an old one."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Any

from samclip.cli.places import system_of
from samclip.files import TIMEOUT_S, within

UNKNOWN = ""
"""State of a file that is gone, cannot be asked, or of which a server says nothing."""
_VERSIONS = ("ETag", "etag")
_TIMES = ("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "created")


def state(place: str) -> str:
    """Return the state of a file at a path or URL now, as 16 hex digits, or UNKNOWN."""
    try:
        found = within(TIMEOUT_S, lambda _: _at_url(place)) if "://" in place else _on_disk(place)
    except Exception:  # each file system has its own errors; a read gives the reason
        return UNKNOWN
    return hashlib.sha256(repr(found).encode()).hexdigest()[:16] if found else UNKNOWN


def _on_disk(path: str) -> tuple[Any, ...]:
    about = os.stat(path)
    return about.st_size, about.st_mtime_ns


def _at_url(url: str) -> tuple[Any, ...]:
    system, path = system_of(url)
    system.invalidate_cache()
    about = system.info(path)
    for names in (_VERSIONS, _TIMES):
        if found := next((str(about[name]) for name in names if about.get(name)), ""):
            return about.get("size"), found
    return () if about.get("size") is None else (about["size"],)


def differ(before: Sequence[str], now: Iterable[str]) -> bool:
    """Return whether a file has changed: one that cannot be asked now has not."""
    return any(
        UNKNOWN not in (old, new) and old != new for old, new in zip(before, now, strict=False)
    )
