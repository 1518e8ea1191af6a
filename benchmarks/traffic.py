"""Photographs, and HTTP requests about them to the service and to other servers."""

import base64
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
import numpy as np
from PIL import Image

from benchmarks.in_process import LABELS

COLLECTION = "bench"
COLLECTION_SIZE = 32
IMAGES, ZIPF = 1000, 1.2  # of a working day
CLICKS = 3  # per visit
PATHS = {"classify": "/classify", "click": "/segment", "search": "/search"}
Kind = Literal["classify", "click", "search"]
_fresh = count()


@dataclass(frozen=True)
class Ask:
    """One request. ``known``: the service has seen the file and receives only its key."""

    kind: Kind
    file: bytes = b""
    known: bool = False
    point: tuple[float, float] = (0.0, 0.0)
    text: str = ""


Visit = list[Ask]


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


def all_new() -> Iterator[Visit]:
    """Yield visits of one classification, no image twice."""
    return ([Ask("classify", fresh(number))] for number in count())


def again(kind: Kind) -> Iterator[Visit]:
    """Yield visits of one request about a few images that the service knows."""
    few = [photograph(number) for number in range(4)]
    return ([Ask(kind, file, True, point(number))] for number, file in enumerate(cycle(few)))


def working_day(visits: int) -> Iterator[Visit]:
    """Yield visits: a classification, three clicks on the same image and a text search.

    Images and texts are drawn from 1,000 by Zipf's law, with a fixed seed.
    """
    shares = np.arange(1, IMAGES + 1) ** -ZIPF
    drawn = np.random.default_rng(0).choice(IMAGES, visits, p=shares / shares.sum())
    for number, rank in enumerate(drawn.tolist()):
        file = photograph(rank) + rank.to_bytes(2, "little")
        clicks = [Ask("click", file, True, point(CLICKS * number + i)) for i in range(CLICKS)]
        yield [
            Ask("classify", file),
            *clicks,
            Ask("search", text=f"a red car in front of house {rank}"),
        ]


def point(number: int) -> tuple[float, float]:
    """Return a point inside every photograph, which varies with ``number``."""
    return 20.0 + number % 140, 20.0 + 7 * number % 140


def to_service(ask: Ask) -> tuple[str, str, bytes]:
    """Return (path, content type, body): a form with the file, or JSON."""
    fields: dict[str, Any] = {
        "classify": {"labels": list(LABELS)},
        "click": {"prompts": [{"points": [dict(zip("xy", ask.point, strict=True))]}]},
        "search": {"collection": COLLECTION, "text": ask.text},
    }[ask.kind]
    if ask.file and not ask.known:
        return PATHS[ask.kind], *form(ask.file, fields)
    if ask.file:
        fields["image"] = {"key": hashlib.sha256(ask.file).hexdigest()}
    return PATHS[ask.kind], "application/json", json.dumps(fields).encode()


def to_peer(ask: Ask, in_form: bool) -> tuple[str, bytes]:
    """Return (content type, body): a line of JSON, then the file, as peers do not keep it."""
    head = json.dumps({"kind": ask.kind, "point": ask.point, "text": ask.text})
    content = head.encode() + b"\n" + ask.file
    return form(content, {}) if in_form else ("application/octet-stream", content)


def collection() -> bytes:
    """Return the JSON that adds a few images to the collection that visits search."""
    files = [photograph(-1 - n) + b"indexed%d" % n for n in range(COLLECTION_SIZE)]
    items = [
        {"id": str(number), "image": base64.b64encode(file).decode()}
        for number, file in enumerate(files)
    ]
    return json.dumps({"collection": COLLECTION, "items": items}).encode()


def form(file: bytes, fields: dict[str, list[Any]]) -> tuple[str, bytes]:
    """Return a multipart form as (content type, body)."""
    texts = {
        name: [value if isinstance(value, str) else json.dumps(value) for value in values]
        for name, values in fields.items()
    }
    files = {"image": ("image.jpg", file, "image/jpeg")}
    request = httpx.Request("POST", "http://service", data=texts, files=files)
    return request.headers["content-type"], request.read()
