"""Parts of a batch on a CPU, each on cores of its own: its caches are too small for all at once."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

_everywhere = ThreadPoolExecutor(1, "all-cores")
"""The one thread that computes on all cores, whichever asks. OpenMP gives each thread that does so
helpers of its own; where they are more than the cores, none of them waits a moment for its next
loop, but all go to sleep after every one: 420 times an image, 240 times a click (edge, two cores),
instead of 14. A click then took 28 ms instead of 17. What a program itself computes with torch in
another thread has the same effect: on one core (``one_core``) it has not."""


class Cores:
    """As many threads as torch computes on when this is made, for all who ``map`` at a time.

    ``number`` stays what it was then: torch would tell a thread that is new while others compute
    on one core each that there is one, and go on telling it.
    """

    def __init__(self) -> None:
        self.number = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self.number, "core")
        self._turn = threading.Lock()  # of a single core
        self._changed = threading.Condition()
        self._parts = 0  # of all that is under way, or waits to be
        self._alone = False  # one part has all cores

    def map(
        self, function: Callable[[T], R], parts: Sequence[T], alone: bool = True
    ) -> Iterator[R]:
        """``function`` of each part, in order, each as soon as it and those before it are done.

        A part gets its share of the cores; one ``alone`` gets all, and what comes meanwhile waits
        for it: beside others on its cores it would take much longer than they are kept waiting. Not
        ``alone``, with others about to come, it leaves them half.
        """
        if self.number == 1:  # without helpers here is as well as anywhere; one part at a time
            for part in parts:
                with self._turn, one_core():
                    result = function(part)
                yield result
            return
        with self._counted(len(parts), alone) as count:
            threads = max(1, self.number // max(1, count))

            def with_its_share(part: T) -> R:
                torch.get_num_threads()  # the first call in a thread would undo the next line later
                torch.set_num_threads(threads)
                try:
                    return function(part)
                finally:
                    torch.set_num_threads(self.number)  # what other threads would begin with

            if count > 1:
                yield from self._pool.map(with_its_share, parts)
                return
            done: list[R] = list(_everywhere.map(with_its_share, parts))
        yield from done  # whoever waits goes on, whatever is done with it

    @property
    def free(self) -> int:
        """Cores that have nothing to do, or 1 for what waits for the next one."""
        return max(1, self.number - self._parts)

    @contextmanager
    def _counted(self, parts: int, alone: bool) -> Iterator[int]:
        """With so many more under way, which yields how many there are then."""
        with self._changed:
            self._parts += parts
            self._changed.wait_for(lambda: not self._alone)
            count = self._parts if alone else max(self._parts, 2)
            self._alone = count == 1
        try:
            yield count
        finally:
            with self._changed:
                self._parts -= parts
                self._alone = False
                self._changed.notify_all()


def last_level_cache() -> int:
    """Bytes of the largest cache that the first core sees; 0 where the system does not say."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((1024 * int(size.read_text().strip().rstrip("K")) for size in sizes), default=0)


@contextmanager
def one_core() -> Iterator[None]:
    """For what is computed once, in whatever thread: with OpenMP it would keep its helpers."""
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(cores)
