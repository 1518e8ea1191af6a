"""Read and decode images ahead of the encoder, and answer behind it: an error is of one image."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from samclip.thumbnails import PREFIX, with_thumbnail
from samclip.types import THUMBNAIL

from samclip_core.encoder import Prepared
from samclip_core.errors import SamClipError
from samclip_core.io.image import decode, image_key
from samclip_core.model import SamClip
from samclip_core.types import ImageFeatures
from services.lake import answers
from services.sources.item import Item

READERS = 4
"""Least threads that read and decode ahead: object stores answer slowly."""
BATCH = 8
"""Images in one run of an encoder that takes several."""
S = TypeVar("S")
T = TypeVar("T")


class Ready(NamedTuple):
    """An image and its tiles ready for the encoder; or the reason why it is not.

    ``unread``: another run may succeed. ``state``: of the image's own file before it was read.
    """

    item: Item
    key: str = ""
    frames: answers.Parts[Prepared] = MappingProxyType({})
    reason: str = ""
    unread: bool = False
    state: str | None = None
    thumbnail: str | None = None

    def failed(self, error: Exception, unread: bool) -> "Ready":
        """Return the image with the reason instead of its content."""
        reason = str(error) or type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        elif not isinstance(error, (SamClipError, OSError, ValueError)):
            reason = f"{type(error).__name__}: {error}"
        return Ready(self.item, reason=reason, unread=unread, state=self.state)


Encoded = tuple[Ready, answers.Parts[ImageFeatures]]
Answer = tuple[Ready, dict[str, Any]]


def answered(
    model: SamClip, work: Mapping[str, Any], found: Iterable[Item], cpus: int
) -> Iterator[Answer]:
    """Yield every image with the columns of its answers, in order; without any, with the reason.

    Threads read and decode ahead of the encoder, and others answer behind it: none of them holds
    more than a few images, and with tiles each holds two.
    """
    at_once = BATCH if model.engine.batches else 1
    prepare = partial(_prepare, model, work)
    size, ahead, behind = at_once, max(READERS, cpus) + at_once, cpus + 1
    if "tiles" in work:
        size, ahead, behind = 1, 1, 1
    with ThreadPoolExecutor(max(READERS, cpus)) as readers, ThreadPoolExecutor(cpus) as heads:
        ready = _ahead(readers, prepare, found, ahead)
        encoded = _encoded(model, ready, size, at_once)
        yield from _ahead(heads, partial(_answer, model, work), encoded, behind)


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


def _prepare(model: SamClip, work: Mapping[str, Any], item: Item) -> Ready:
    """Read and decode an image, and resize it and its tiles for each side of the frame.

    What can be read and is refused is refused for good; without the memory for it, as without
    the file, another run may succeed.
    """
    ready = Ready(item, state=item.state() if item.has_own_file else None)
    try:
        encoded = item.read()
        key, pairs = image_key(encoded), item.metadata
        if work["embed"]:  # with those that samclip index --from will add
            pairs = with_thumbnail({"source": item.source, "key": key, **item.metadata}, encoded)
        image_HW3 = decode(encoded, model.limits)
        frames = answers.prepare(model, work, image_HW3)
    except Exception as error:
        return ready.failed(error, isinstance(error, (OSError, MemoryError)))
    small = pairs.get(THUMBNAIL, "")  # a column of this name may hold any text
    return ready._replace(
        key=key, frames=frames, thumbnail=small if small.startswith(PREFIX) else None
    )


def _encoded(model: SamClip, images: Iterator[Ready], size: int, at_once: int) -> Iterator[Encoded]:
    """Yield each image with its features by the side of the frame; a bad image has none."""
    while several := [*islice(images, size)]:
        good = iter(_encode(model, [each for each in several if not each.reason], at_once))
        yield from ((each, {}) if each.reason else next(good) for each in several)


def _encode(model: SamClip, several: Sequence[Ready], at_once: int) -> list[Encoded]:
    """Encode images at once, or each alone if that fails."""
    try:
        frames = [each.frames for each in several]
        features = answers.encode(model, frames, at_once) if several else []
    except Exception as error:
        if len(several) == 1:
            return [(several[0].failed(error, not isinstance(error, SamClipError)), {})]
        return [done for each in several for done in _encode(model, [each], at_once)]
    return [*zip(several, features, strict=True)]


def _answer(model: SamClip, work: Mapping[str, Any], encoded: Encoded) -> Answer:
    ready, features = encoded
    if ready.reason:
        return ready, {}
    (_, whole), *_ = next(iter(features.values()))
    geometry = whole.geometry
    row = {"width": geometry.width, "height": geometry.height}
    try:
        return ready._replace(frames={}), row | answers.answer(model, work, features)
    except Exception as error:
        return ready.failed(error, not isinstance(error, SamClipError)), {}
