"""Asking about many pictures: a service with too much to do answers later, and is waited for.

No request has a time limit for that. The refused ones wait, so that as many are in flight as the
service takes. One that is away is waited for twice as long as the load of a model may take.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from random import uniform
from threading import Event
from time import monotonic
from typing import TypeVar

from samclip.errors import DeadlineExceeded, ServiceError, Unavailable

T = TypeVar("T")
G = TypeVar("G")
R = TypeVar("R")
LONGEST_S = 15.0
"""The longest wait before a busy service is asked again, unless it names a longer one."""
LATE, SAID = 5, 3
"""Tries after which a passed deadline is an error, and after which a wait is reported."""
AWAY_S = 1200.0
"""How long a service may be unavailable without any answer: twice the longest load of a model."""
_log = logging.getLogger("samclip")


class Run:
    """Requests of one command: an answer to any of them is progress."""

    def __init__(self) -> None:
        self.left = Event()  # once it is set, nobody waits for the answers any more
        self.answered = 0.0

    def later(self, error: ServiceError, tries: int, since: float) -> float:
        """Return when to ask again after so many tries since a time: ever later.

        Raises the error if the answer would be the same, its time has passed so often that no queue
        can be the reason, or the service has been away for AWAY_S.
        """
        after_s, away_s = error.retry_after_s, monotonic() - max(since, self.answered)
        if (
            after_s is None
            or (isinstance(error, DeadlineExceeded) and tries >= LATE)
            or (isinstance(error, Unavailable) and away_s > AWAY_S)
        ):
            raise error
        if tries == SAID:
            _log.warning("%s: asked again until it is answered", error)
        return max(after_s, min(2 ** min(tries, 9), LONGEST_S) * uniform(0.5, 1))


def each(
    items: Iterable[T],
    ask: Callable[[G], R],
    at_once: int,
    read: Callable[[T], G] = lambda item: item,  # type: ignore[assignment,return-value]
) -> Iterator[tuple[T, Future[R]]]:
    """Yield every item with its finished or running answer, in order; few are ahead of it.

    ``read`` is called once per item, and ``ask`` with what it returns, as by ``patiently``.
    """
    pool, run = ThreadPoolExecutor(at_once), Run()
    ahead: deque[tuple[T, Future[R]]] = deque()

    def answer(item: T) -> R:
        given = read(item)
        return patiently(lambda: ask(given), run)

    try:
        for item in items:
            ahead.append((item, pool.submit(answer, item)))
            if len(ahead) >= 2 * at_once:
                yield ahead.popleft()
        while ahead:
            yield ahead.popleft()
    finally:
        run.left.set()
        pool.shutdown(wait=False, cancel_futures=True)


def patiently(ask: Callable[[], R], run: Run | None = None) -> R:
    """Return an answer; ask again as long as the service has too much to do, or is not up yet."""
    run, since = run or Run(), monotonic()
    for tries in count():
        try:
            answer = ask()
        except ServiceError as error:
            if run.left.wait(run.later(error, tries, since)):
                raise
        else:
            run.answered = monotonic()
            return answer
    raise AssertionError("asked for ever")


async def awaited(ask: Callable[[], Awaitable[R]], run: Run) -> R:
    """Return an answer as ``patiently`` does, but without blocking an event loop."""
    since = monotonic()
    for tries in count():
        try:
            answer = await ask()
        except ServiceError as error:
            await asyncio.sleep(run.later(error, tries, since))
        else:
            run.answered = monotonic()
            return answer
    raise AssertionError("asked for ever")
