"""Do the work of a batch on one part: read and decode ahead, encode, answer, write."""

import base64
import io
import json
import tarfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow.parquet as pq
import samclip

from samclip_core.encoder import Prepared
from samclip_core.errors import SamClipError
from samclip_core.io.image import decode, image_key
from samclip_core.model import SamClip
from samclip_core.types import ImageFeatures
from services.lake import answers
from services.lake.plan import Plan
from services.lake.tables import (
    FAILURE,
    FAILURES,
    IMAGES,
    SHARDS,
    Rows,
    images_schema,
    part_name,
    writing,
)
from services.sources.item import Item
from services.sources.reading import items

READERS = 4
"""Least threads that read and decode ahead: object stores answer slowly."""
BATCH = 8
"""Images in one run of an encoder that takes several."""
S = TypeVar("S")
T = TypeVar("T")


class Ready(NamedTuple):
    """An image ready for the encoder, by the side of the frame; or the reason why it is not."""

    item: Item
    encoded: bytes = b""
    key: str = ""
    frames: Mapping[int, Prepared] = {}
    reason: str = ""


def run_part(model: SamClip, plan: Plan, number: int, cpus: int) -> dict[str, int]:
    """Write the tables of a part, unless they are there; return the numbers of their rows.

    The table of images is written last: where it is, the part is done.
    """
    folder, name = plan.folder, part_name(number)
    if folder.exists(f"{IMAGES}/{name}.parquet"):
        return counts(plan, number)
    schema = images_schema(plan.values["work"], plan.values["model"], samclip.__version__)
    with ExitStack() as files:
        to_images = files.enter_context(writing(folder, f"{IMAGES}/{name}.parquet"))
        to_failures = files.enter_context(writing(folder, f"{FAILURES}/{name}.parquet"))
        shard = None
        if plan.values["webdataset"]:
            to_shard = files.enter_context(writing(folder, f"{SHARDS}/{name}.tar"))
            shard = files.enter_context(tarfile.open(to_shard, "w"))
        images = files.enter_context(Rows(to_images, schema))
        failures = files.enter_context(Rows(to_failures, FAILURE))
        work, copies = plan.values["work"], Counter[str]()
        for ready, row in _answered(model, work, items(plan.part(number)), cpus):
            about = {"id": _utf8(ready.item.id), "source": _utf8(ready.item.source)}
            if ready.reason:
                failures.add({**about, "reason": ready.reason})
                continue
            whole = {**about, "key": ready.key, **row}
            metadata = ready.item.metadata.items()
            images.add(
                {**whole, "metadata": [(_utf8(name), _utf8(text)) for name, text in metadata]}
            )
            if shard is not None:
                copies[ready.key] += 1
                whole.pop("objects", None)  # bytes for a search, not an answer to read
                _add_to_shard(shard, whole, ready.encoded, copies[ready.key])
        return {IMAGES: images.count, FAILURES: failures.count}


def counts(plan: Plan, number: int) -> dict[str, int]:
    """Return the numbers of rows of a part that is done."""
    found = {}
    for table in (IMAGES, FAILURES):
        with plan.folder.open(f"{table}/{part_name(number)}.parquet") as file:
            found[table] = pq.ParquetFile(file).metadata.num_rows
    return found


Answer = tuple[Ready, dict[str, Any]]


def _answered(
    model: SamClip, work: Mapping[str, Any], found: Iterable[Item], cpus: int
) -> Iterator[Answer]:
    """Yield every image with the columns of its answers, in order.

    Threads read and decode ahead of the encoder, and others answer behind it: none of them holds
    more than a few images.
    """
    size = BATCH if model.engine.batches else 1
    prepare = partial(_prepare, model, answers.sizes(model, work))
    with ThreadPoolExecutor(max(READERS, cpus)) as readers, ThreadPoolExecutor(cpus) as heads:
        ready = _ahead(readers, prepare, found, max(READERS, cpus) + size)
        encoded = _encoded(model, ready, size)
        yield from _ahead(heads, partial(_answer, model, work), encoded, cpus + 1)


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[S], T], given: Iterable[S], held: int
) -> Iterator[T]:
    """Yield the results of a function in order, computed in threads, at most ``held`` ahead."""
    futures = deque[Future[T]]()
    for each in given:
        futures.append(pool.submit(function, each))
        if len(futures) > held:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


def _prepare(model: SamClip, sides: Sequence[int], item: Item) -> Ready:
    """Read and decode an image, and resize it for each side of the frame."""
    try:
        encoded = item.read()
    except Exception as error:  # each file system has its own errors
        return Ready(item, reason=_reason(error))
    try:
        image_HW3 = decode(encoded, model.limits)
        frames = {side: model.prepare(image_HW3, side) for side in sides}
    except SamClipError as error:
        return Ready(item, reason=str(error))
    return Ready(item, encoded, image_key(encoded), frames)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return _utf8(str(error) or type(error).__name__)


def _encoded(
    model: SamClip, images: Iterator[Ready], size: int
) -> Iterator[tuple[Ready, dict[int, ImageFeatures]]]:
    """Yield each image with its features by the side of the frame; a bad image has none."""
    while several := [*islice(images, size)]:
        good = [each.frames for each in several if not each.reason]
        features = iter(answers.encode(model, good) if good else [])
        yield from ((each, {} if each.reason else next(features)) for each in several)


def _answer(
    model: SamClip, work: Mapping[str, Any], encoded: tuple[Ready, dict[int, ImageFeatures]]
) -> Answer:
    ready, features = encoded
    if ready.reason:
        return ready, {}
    geometry = next(iter(features.values())).geometry
    row = {"width": geometry.width, "height": geometry.height}
    try:
        return ready._replace(frames={}), row | answers.answer(model, work, features)
    except SamClipError as error:
        return ready._replace(frames={}, reason=str(error)), {}


def _utf8(text: str) -> str:
    """Return a text as Parquet stores it: bytes of a name and surrogates of JSON as escapes."""
    try:
        encoded = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        encoded = text.encode("utf-8", "backslashreplace")
    return encoded.decode("utf-8", "backslashreplace")


def _add_to_shard(
    shard: tarfile.TarFile, row: Mapping[str, Any], encoded: bytes, copy: int
) -> None:
    """Add the image's file, and its answers as JSON, under the image's key.

    ``copy`` counts the images with these bytes, which must differ in their names.
    """
    name = row["key"] if copy == 1 else f"{row['key']}-{copy}"
    suffix = next(suffix for start, suffix in _STARTS.items() if encoded.startswith(start))
    answers_json = json.dumps(_plain(row), sort_keys=True).encode()
    for end, content in ((suffix, encoded), (".json", answers_json)):
        member = tarfile.TarInfo(f"{name}{end}")
        member.size = len(content)
        shard.addfile(member, io.BytesIO(content))


_STARTS = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp"}


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: RLE counts as text, a PNG in base64."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode() if value.startswith(b"\x89PNG") else value.decode()
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
