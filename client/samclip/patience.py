"""Asking about many pictures: a service with too much to do answers later, and is waited for.

No request has a time limit for that. The refused ones wait, so that as many are in flight as the
service takes.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from random import uniform
from threading import Event
from typing import TypeVar

from samclip.errors import DeadlineExceeded, ServiceError

T = TypeVar("T")
G = TypeVar("G")
R = TypeVar("R")
LONGEST_S = 15.0
"""The longest wait before a busy service is asked again, unless it names a longer one."""
LATE, SAID = 5, 3
"""Tries after which a passed deadline is an error, and after which a wait is reported."""
_log = logging.getLogger("samclip")


def each(
    items: Iterable[T],
    ask: Callable[[G], R],
    at_once: int,
    read: Callable[[T], G] = lambda item: item,  # type: ignore[assignment,return-value]
) -> Iterator[tuple[T, Future[R]]]:
    """Yield every item with its finished or running answer, in order; few are ahead of it.

    ``read`` is called once per item, and ``ask`` with what it returns, as by ``patiently``.
    """
    pool, left = ThreadPoolExecutor(at_once), Event()
    ahead: deque[tuple[T, Future[R]]] = deque()

    def answer(item: T) -> R:
        given = read(item)
        return patiently(lambda: ask(given), left)

    try:
        for item in items:
            ahead.append((item, pool.submit(answer, item)))
            if len(ahead) >= 2 * at_once:
                yield ahead.popleft()
        while ahead:
            yield ahead.popleft()
    finally:
        left.set()
        pool.shutdown(wait=False, cancel_futures=True)


def patiently(ask: Callable[[], R], left: Event | None = None) -> R:
    """Return an answer; ask again as long as the service has too much to do, or is not up yet.

    Once ``left`` is set, nobody waits for the answer any more.
    """
    left = left or Event()
    for tries in count():
        try:
            return ask()
        except ServiceError as error:
            if left.wait(_later(error, tries)):
                raise
    raise AssertionError("asked for ever")


async def awaited(ask: Callable[[], Awaitable[R]]) -> R:
    """Return an answer as ``patiently`` does, but without blocking an event loop."""
    for tries in count():
        try:
            return await ask()
        except ServiceError as error:
            await asyncio.sleep(_later(error, tries))
    raise AssertionError("asked for ever")


def _later(error: ServiceError, tries: int) -> float:
    """Return when to ask again after so many tries: a busy service is given ever more time.

    Raises the error if the answer would be the same, or its time has passed so often that no queue
    can be the reason.
    """
    after_s = error.retry_after_s
    if after_s is None or (isinstance(error, DeadlineExceeded) and tries >= LATE):
        raise error
    if tries == SAID:
        _log.warning("%s: asked again until it is answered", error)
    return max(after_s, min(2 ** min(tries, 9), LONGEST_S) * uniform(0.5, 1))
