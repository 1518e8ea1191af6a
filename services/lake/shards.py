"""WebDataset shards of a batch: each image with its answers as JSON."""

import base64
import io
import json
import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

_STARTS = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp"}


class Shard:
    """A tar that images are added to; the same images make the same bytes."""

    def __init__(self, path: Path) -> None:
        self._tar, self._copies = tarfile.TarFile(path, "w"), Counter[str]()

    def add(self, row: Mapping[str, Any], encoded: bytes) -> None:
        """Add the image's file, and its answers as JSON, under the image's key.

        Objects are bytes for a search, not an answer to read. Images with the same bytes differ in
        the number at the end of their names.
        """
        key = row["key"]
        self._copies[key] += 1
        name = key if self._copies[key] == 1 else f"{key}-{self._copies[key]}"
        suffix = next(suffix for start, suffix in _STARTS.items() if encoded.startswith(start))
        answers = {column: each for column, each in row.items() if column != "objects"}
        answers_json = json.dumps(_plain(answers), sort_keys=True).encode()
        for end, content in ((suffix, encoded), (".json", answers_json)):
            member = tarfile.TarInfo(f"{name}{end}")
            member.size = len(content)
            self._tar.addfile(member, io.BytesIO(content))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._tar.close()


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: RLE counts as text, a PNG in base64."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode() if value.startswith(b"\x89PNG") else value.decode()
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
