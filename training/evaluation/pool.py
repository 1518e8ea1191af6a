"""Processes that share the pictures of an evaluation, each with a copy of the model."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util import ActorPool

from samclip_core.config import SamClipConfig
from samclip_core.io import own_ray
from samclip_core.model import SamClip

T = TypeVar("T")
R = TypeVar("R")
Task = Callable[[SamClip, T], R]
RETRIES = 3
"""Restarts of a lost worker; the task that it had is done again."""


class Pool:
    """Workers of this machine, or of the Ray cluster that ``RAY_ADDRESS`` names."""

    def __init__(self, load: Callable[[], SamClip], count: int, gpu: bool = False) -> None:
        """Start ``count`` workers, each with what ``load`` returns; with ``gpu``, share the GPUs.

        Raises ValueError if Ray finds no GPU to share; Unavailable and OSError as
        ``own_ray.connected``.
        """
        with ExitStack() as stack:
            stack.enter_context(own_ray.connected(ray))
            gpus = ray.cluster_resources().get("GPU", 0)
            if gpu and not gpus:
                raise ValueError("Ray finds no GPU for the workers: evaluate without --workers")
            self._ray = stack.pop_all()
        share = 1 / math.ceil(count / gpus) if gpu else 0
        worker = ray.remote(
            num_cpus=0,
            num_gpus=share,
            scheduling_strategy="SPREAD",
            max_restarts=RETRIES,
            max_task_retries=RETRIES,
        )(_Worker)
        self.actors = [worker.remote(load) for _ in range(count)]

    def map(self, config: SamClipConfig, task: Task[T, R], parts: Sequence[T]) -> Iterator[R]:
        """Yield the result of each part in order; the models then have this ``config``.

        Raises the error of a task, and ChildProcessError if a worker is lost for good.
        """
        shared = ray.put((config, task))  # a task may hold the vectors of a thousand names
        results = ActorPool(self.actors).map(
            lambda actor, part: actor.run.remote(shared, part), parts
        )
        try:
            yield from results
        except RayTaskError as error:
            raise error.cause from error
        except RayActorError as error:
            raise ChildProcessError(
                f"a worker ended and {RETRIES} restarts did not help: {error}. If the memory was "
                "full, give fewer --workers"
            ) from error

    def close(self) -> None:
        """End the workers, and the Ray that was started for them."""
        for actor in self.actors:
            ray.kill(actor)
        self._ray.close()


class _Worker:
    def __init__(self, load: Callable[[], SamClip]) -> None:
        self._model = load()

    def run(self, shared: tuple[SamClipConfig, Task[Any, Any]], part: Any) -> Any:
        self._model.config, task = shared
        return task(self._model, part)
