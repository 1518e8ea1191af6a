"""The progress of a batch in images, also of parts that are not done."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from samclip import progress

TELL_S = 1.0
"""Interval between the reports of a worker, and between those on the screen."""


class Seen:
    """Counts the images that workers have seen of each part. An actor of Ray."""

    def __init__(self, done: Mapping[int, int]) -> None:
        """``done``: the number of images of each part that earlier runs have done."""
        self._images, self._done = dict(done), set(done)

    def tell(self, part: int, images: int, done: bool) -> None:
        """Set how many images of a part have been seen, and whether it is done."""
        self._images[part] = images
        if done:
            self._done.add(part)

    def total(self) -> tuple[int, int]:
        """Return how many parts are done, and how many images have been seen."""
        return len(self._done), sum(self._images.values())


@contextmanager
def watched(
    done: Mapping[int, int], parts: int, images: int | None, environment: Mapping[str, Any]
) -> Iterator[Any]:
    """Show a bar of all images while the context lasts; yield the actor that workers tell.

    If the number of images is not known, it has no end, and counts the parts as well.
    ``environment``: Ray's runtime_env, in which another node finds this module.
    """
    import ray

    seen: Any = ray.remote(Seen).options(num_cpus=0, runtime_env=environment).remote(done)
    stopped = threading.Event()

    def watch() -> None:
        before, last = 0, False
        while not last:
            last = stopped.wait(TELL_S)
            with suppress(ray.exceptions.RayError):
                of_parts, of_images = ray.get(seen.total.remote(), timeout=10 * TELL_S)
                of_all = [] if images else [f"{of_parts:,} of {parts:,} parts, images"]
                advance(of_images - before, *of_all)
                before = of_images

    with progress.bar("images", images, wanted=True) as advance:
        watching = threading.Thread(target=watch)
        watching.start()
        try:
            yield seen
        finally:
            stopped.set()
            watching.join()
