"""A photograph with its annotations, as read, and the error for a broken one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A photograph and its annotations; absent annotations are empty."""

    key: str
    source: str
    encoded: bytes
    info: dict[str, Any]
    label_png: bytes = b""
    instance_png: bytes = b""
    class_index: int = -1


class BadSample(ValueError):
    """A photograph or its annotations cannot be read; the caller should draw another one."""

    def __init__(self, source: str, key: str, reason: str) -> None:
        super().__init__(source, key, reason)
        self.source, self.key, self.reason = source, key, reason

    def __str__(self) -> str:
        return f"{self.source}/{self.key}: {self.reason}"


@contextmanager
def reading(source: str, key: str, what: str) -> Iterator[None]:
    """Turn a decoder's errors about damaged bytes into BadSample; wrap nothing but decoders."""
    try:
        yield
    except BadSample:
        raise
    except Exception as error:  # a decoder may raise anything on damaged bytes
        raise BadSample(source, key, f"{what}: {error or type(error).__name__}") from error
