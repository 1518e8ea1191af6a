"""Photographs, and HTTP requests about them to the service."""

import hashlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count, cycle
from typing import Any, Literal

import httpx
from PIL import Image

from benchmarks.in_process import LABELS

PATHS = {"classify": "/classify", "click": "/segment"}
Kind = Literal["classify", "click"]
_fresh = count()


@dataclass(frozen=True)
class Ask:
    """One request. ``known``: the service has seen the file and receives only its key."""

    kind: Kind
    file: bytes
    known: bool = False
    point: tuple[float, float] = (0.0, 0.0)


@cache
def photographs() -> tuple[bytes, ...]:
    """Return scikit-image's photographs, of 0.14 to 0.27 megapixels, as JPEG files."""
    from skimage import data

    return tuple(map(jpeg, (data.chelsea(), data.astronaut(), data.coffee(), data.rocket())))


def jpeg(picture_HW3: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture_HW3).save(file, "JPEG", quality=92)
    return file.getvalue()


def photograph(number: int) -> bytes:
    return photographs()[number % len(photographs())]


def fresh(number: int) -> bytes:
    """Return a photograph that no process has sent before, with unique bytes after its end."""
    mark = os.getpid().to_bytes(4, "little") + next(_fresh).to_bytes(8, "little")
    return photograph(number) + mark


def all_new() -> Iterator[Ask]:
    """Yield classifications, no image twice."""
    return (Ask("classify", fresh(number)) for number in count())


def again(kind: Kind) -> Iterator[Ask]:
    """Yield requests about a few images that the service knows."""
    few = [photograph(number) for number in range(4)]
    return (Ask(kind, file, True, point(number)) for number, file in enumerate(cycle(few)))


def point(number: int) -> tuple[float, float]:
    """Return a point inside every photograph, which varies with ``number``."""
    return 20.0 + number % 140, 20.0 + 7 * number % 140


def to_service(ask: Ask) -> tuple[str, str, bytes]:
    """Return (path, content type, body): a form with the file, or JSON."""
    fields: dict[str, Any] = {
        "classify": {"labels": list(LABELS)},
        "click": {"prompts": [{"points": [dict(zip("xy", ask.point, strict=True))]}]},
    }[ask.kind]
    if not ask.known:
        return PATHS[ask.kind], *form(ask.file, fields)
    fields["image"] = {"key": hashlib.sha256(ask.file).hexdigest()}
    return PATHS[ask.kind], "application/json", json.dumps(fields).encode()


def form(file: bytes, fields: dict[str, list[Any]]) -> tuple[str, bytes]:
    """Return a multipart form as (content type, body)."""
    texts = {
        name: [value if isinstance(value, str) else json.dumps(value) for value in values]
        for name, values in fields.items()
    }
    files = {"image": ("image.jpg", file, "image/jpeg")}
    request = httpx.Request("POST", "http://service", data=texts, files=files)
    return request.headers["content-type"], request.read()
