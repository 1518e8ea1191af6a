"""Many photographs, asked about several at once: in order, and a broken one stops nothing."""

import asyncio
import functools
import logging
import os
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
)
from itertools import islice
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import numpy as np
from PIL import Image

from samclip.errors import (
    InvalidArgument,
    PermissionDenied,
    ServiceError,
    Unauthenticated,
    Unavailable,
    plain,
)
from samclip.files import is_url
from samclip.images import ImageSource, Source, check_ids, image_files
from samclip.patience import Run, awaited, each
from samclip.photo import AsyncPhoto, Photo
from samclip.progress import bar

AnyPhoto = TypeVar("AnyPhoto", Photo, AsyncPhoto)
T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")
Images = ImageSource | Iterable[ImageSource]
AT_ONCE = 8
"""Photographs asked about at once: enough to keep a service of 16 cores busy."""
REFUSALS = (Unavailable, Unauthenticated, PermissionDenied)
"""Errors that the next photograph would get as well."""
_log = logging.getLogger("samclip")


def reason(name: str, error: BaseException | None) -> str:
    """Return the message of an error about a photograph, without the photograph's name."""
    match error:
        case InvalidArgument():  # the photograph's fault: no request id is needed
            text = error.message
        case OSError():
            text = error.strerror or str(error)
        case _:
            text = str(error)
    return text.removeprefix(f"{name}: ")


class _Unreadable(Exception):
    """The file of a photograph is missing, empty, too large, or cannot be downloaded."""


class _Photos(Generic[AnyPhoto]):
    """The photographs' sources with their names, and the errors of the latest run."""

    def __init__(
        self, make: Callable[[ImageSource], AnyPhoto], images: Images, at_once: int, progress: bool
    ) -> None:
        if at_once < 1:
            raise ValueError(f"at_once is {at_once}: expected at least 1")
        self._make: Callable[[ImageSource], AnyPhoto] = make
        self._sources = list(_named(images))
        self._at_once = at_once
        self._progress = progress
        self.errors: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._sources)

    def __repr__(self) -> str:
        failed = f", {len(self.errors)} without an answer" if self.errors else ""
        return f"{type(self).__name__}({len(self)} photographs{failed})"

    def _read(self, source: Source) -> AnyPhoto:
        try:
            if source.problem:
                raise ValueError(source.problem)
            photo = self._make(source.name if source.image is None else source.image)
        except (OSError, ValueError) as error:
            raise _Unreadable from error
        photo.name = photo.name or source.name
        return photo

    def _failed(self, name: str, error: Exception) -> None:
        """Note that a photograph has no answer. Raises errors that the next one would get too."""
        if isinstance(error, REFUSALS):
            raise error
        self.errors[name] = reason(name, error.__cause__ if type(error) is _Unreadable else error)
        _log.warning("%s", plain(f"{name}: {self.errors[name]}"))


def _of_each(
    question: Callable[Concatenate[Photo, P], R],
) -> Callable[Concatenate["Photos", P], Iterator[tuple[Photo, R]]]:
    return _asked_of_each(question)


def _of_each_async(
    question: Callable[Concatenate[AsyncPhoto, P], Awaitable[R]],
) -> Callable[Concatenate["AsyncPhotos", P], AsyncIterator[tuple[AsyncPhoto, R]]]:
    return _asked_of_each(question)


def _asked_of_each(question: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(question)
    def ask(photos: Any, /, *args: Any, **kwargs: Any) -> Any:
        return photos.ask(lambda photo: question(photo, *args, **kwargs))

    name = question.__name__
    ask.__doc__ = f"Yield each photograph with the answer of its ``{name}``, as ``ask`` does."
    return ask


def _question(question: Callable[[AnyPhoto], T] | str, parameters: Mapping[str, Any]) -> Any:
    """Return a function of a photograph, also for a head's name. Raises TypeError."""
    if isinstance(question, str):
        return lambda photo: photo.ask(question, **parameters)
    if parameters:
        raise TypeError(f"parameters {', '.join(parameters)} belong to a head: give its name")
    return question


class Photos(_Photos[Photo]):
    """Photographs, made by ``Client.images``: iterate over them, or ``ask`` about each.

    ``len`` counts them. ``errors`` has those of the latest run that could not be read or answered:
    name → message, which is also logged as a warning.

    >>> photos = client.images("photographs")
    >>> for photo, scores in photos.ask(lambda photo: photo.classify(["a cat", "a cup"])):
    ...     print(photo.name, scores[0].label)
    photographs/cat.jpg a cat
    photographs/coffee.jpg a cup
    >>> len(photos), list(photos.errors)
    (3, ['photographs/torn.jpg'])
    >>> {photo.name: vector_D.shape for photo, vector_D in client.images("photographs").embed()}
    {'photographs/cat.jpg': (384,), 'photographs/coffee.jpg': (384,)}
    """

    classify = _of_each(Photo.classify)
    segment = _of_each(Photo.segment)
    everything = _of_each(Photo.everything)
    semantic = _of_each(Photo.semantic)
    embed = _of_each(Photo.embed)

    def __iter__(self) -> Iterator[Photo]:
        for photo, _ in self.ask(lambda photo: None):
            yield photo

    def ask(
        self, question: Callable[[Photo], R] | str, /, **parameters: Any
    ) -> Iterator[tuple[Photo, R]]:
        """Yield each photograph with its answer, in order; several are asked about at once.

        question: called in several threads, and again while the service is busy; or the name of a
        head of one's own, which gets the parameters as by ``Photo.ask``. Photographs that cannot be
        read or answered are left out; see ``errors``. Raises ServiceError if the service is away or
        refuses the key.
        """
        ask = _question(question, parameters)

        def answer(photo: Photo) -> tuple[Photo, R]:
            return photo, ask(photo)

        self.errors = {}
        with bar("photographs", len(self), self._progress) as advance:
            for source, future in each(self._sources, answer, self._at_once, self._read):
                try:
                    answered = future.result()
                except (ServiceError, _Unreadable) as error:
                    self._failed(source.name, error)
                else:
                    yield answered
                advance(1)


class AsyncPhotos(_Photos[AsyncPhoto]):
    """Photographs, made by ``AsyncClient.images``: ``async for``, or ``ask`` about each.

    ``len`` and ``errors`` are those of ``Photos``.

    >>> async def main():
    ...     async with samclip.AsyncClient("127.0.0.1:9000") as client:
    ...         photos = client.images("photographs/c*.jpg")
    ...         async for photo, vector_D in photos.embed():
    ...             print(photo.name, vector_D.shape)
    >>> asyncio.run(main())
    photographs/cat.jpg (384,)
    photographs/coffee.jpg (384,)
    """

    classify = _of_each_async(AsyncPhoto.classify)
    segment = _of_each_async(AsyncPhoto.segment)
    everything = _of_each_async(AsyncPhoto.everything)
    semantic = _of_each_async(AsyncPhoto.semantic)
    embed = _of_each_async(AsyncPhoto.embed)

    async def __aiter__(self) -> AsyncIterator[AsyncPhoto]:
        async for photo, _ in self.ask(lambda photo: asyncio.sleep(0)):
            yield photo

    async def ask(
        self, question: Callable[[AsyncPhoto], Awaitable[R]] | str, /, **parameters: Any
    ) -> AsyncGenerator[tuple[AsyncPhoto, R], None]:
        """Yield each photograph with its answer, in order; several are asked about at once.

        question: called for each; or the name of a head of one's own, as for ``Photos``.
        Photographs that cannot be read or answered are left out; see ``errors``. Raises
        ServiceError if the service is away or refuses the key.
        """
        ask = _question(question, parameters)
        gate, run = asyncio.Semaphore(self._at_once), Run()

        async def answer(source: Source) -> tuple[AsyncPhoto, R]:
            async with gate:
                photo = await asyncio.to_thread(self._read, source)
                return photo, await awaited(lambda: ask(photo), run)

        self.errors = {}
        waiting = iter(self._sources)
        ahead: deque[tuple[str, asyncio.Task[tuple[AsyncPhoto, R]]]] = deque()
        try:
            with bar("photographs", len(self), self._progress) as advance:
                while True:
                    for source in islice(waiting, 2 * self._at_once - len(ahead)):
                        ahead.append((source.name, asyncio.create_task(answer(source))))
                    if not ahead:
                        return
                    name, task = ahead.popleft()
                    try:
                        answered = await task
                    except (ServiceError, _Unreadable) as error:
                        self._failed(name, error)
                    else:
                        yield answered
                    advance(1)
        finally:
            for _, task in ahead:
                task.cancel()
            await asyncio.gather(*(task for _, task in ahead), return_exceptions=True)


def to_index(
    images: Mapping[str, Any] | Images | _Photos[Any], metadata: Mapping[str, Mapping[str, str]]
) -> list[Source]:
    """Return the sources of images, each with its id in the collection.

    images: as for ``Client.images``, or id → image. metadata: id → metadata. Raises ValueError if
    an image has no id, or metadata that of no file; TypeError if an id is no text, or metadata
    are not under ids: they would be lost.
    """
    by_id = isinstance(metadata, Mapping)
    if not by_id or not all(isinstance(each, Mapping) for each in metadata.values()):
        expected = "those of each id, such as {'cat.jpg': {'owner': 'ann'}}"
        raise TypeError(f"metadata is {metadata!r:.60}: expected {expected}")
    if isinstance(images, Mapping):
        for id in images:
            if not isinstance(id, str):
                raise TypeError(f"an id is {id!r} ({type(id).__name__}): expected a text")
        return [Source(id, id, image=image) for id, image in images.items()]
    found = list(_named(images))
    if not all(source.id for source in found):
        raise ValueError("an image in memory needs an id: pass {id: image}, not the image alone")
    check_ids(found)
    ids = {source.id: None for source in found}
    if lost := [id for id in metadata if id not in ids]:
        known = ", ".join(map(repr, [*ids][:3]))
        raise ValueError(f"metadata has the id {lost[0]!r}, which no image has: expected {known} …")
    return found


def _named(images: Images | _Photos[Any]) -> Iterator[Source]:
    """Yield the sources of the photographs, each with its name.

    Raises FileNotFoundError if a lone path does not exist, ValueError if a folder has no images.
    """
    if isinstance(images, _Photos):
        yield from images._sources
    elif isinstance(images, str | os.PathLike):
        found = _files(images)
        if not is_url(images) and not os.path.lexists(found[0][0]):
            raise FileNotFoundError(f"{images}: no such file or folder")
        yield from found
    elif isinstance(images, bytes | Image.Image | np.ndarray):
        yield Source("photograph 1", image=images)
    elif not isinstance(images, Iterable):
        found_type = type(images).__name__
        raise TypeError(f"expected a folder, a path, an address or images, found {found_type}")
    else:
        for number, image in enumerate(images, 1):
            if isinstance(image, str | os.PathLike):
                yield from _files(image)
            else:
                yield Source(f"photograph {number}", image=image)


def _files(path: str | os.PathLike[str]) -> list[Source]:
    found = image_files([os.fspath(path)])
    if found[0].problem and not os.path.isfile(found[0].name):  # nothing is there to ask about
        raise ValueError(f"{found[0].name}: {found[0].problem}")
    return found
