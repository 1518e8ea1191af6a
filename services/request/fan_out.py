"""The parts of one request, worked on together."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from samclip_core.errors import SamClipError

IMAGES_AT_ONCE = 16
"""Images of one request embedded at once: two batches, so that the encoder always has work, and far
below ``max_queue``, so that one large request does not shut out all others."""

I = TypeVar("I")  # noqa: E741
T = TypeVar("T")


async def each(
    work: Callable[[I], Awaitable[T]], images: Sequence[I], to_the_end: bool = False
) -> list[T]:
    """Return ``await work(image)`` of each image. If there are several, an error names the image.

    An error stops the work on the other images. With ``to_the_end`` they are finished first, so
    that their embeddings are cached for the next request.
    """
    gate = asyncio.Semaphore(IMAGES_AT_ONCE)

    async def one(index: int, image: I) -> T:
        try:
            async with gate:
                return await work(image)
        except SamClipError as error:
            where = f"image {index}: " if len(images) > 1 else ""
            raise type(error)(f"{where}{error}") from error

    works = [one(*pair) for pair in enumerate(images)]
    if to_the_end:
        found = await asyncio.gather(*works, return_exceptions=True)
        failed = [result for result in found if isinstance(result, BaseException)]
        if failed:
            raise failed[0]
        return [result for result in found if not isinstance(result, BaseException)]
    return await together(*works)


async def together(*works: Coroutine[Any, Any, Any]) -> list[Any]:
    """Return the results of all works. Raises the first error, and stops the other works."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
