"""The data-parallel workers of a run: how they share a step and sum their results.

Every worker holds the whole network and takes every n-th slot of a step's global batch. Losses are
scaled to their share of the global batch, so gradients and figures are plain sums over workers,
whatever their number. Without torch.distributed there is one worker. A lost worker is restarted,
unless its error would only come again.
"""

import atexit
import os
import random
import shutil
import tempfile
from collections.abc import Iterable
from functools import cache
from multiprocessing import current_process, get_context, parent_process, util
from multiprocessing.context import BaseContext
from threading import Thread
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import UserCallback
from ray.util.metrics import Gauge
from torch import Tensor, nn

from samclip_core.errors import SamClipError
from samclip_core.io.folder import Folder

MOST_READERS = 8
"""Maximum of decoding processes per worker: an H100 needs fewer (``results/BUDGET.md``).
Each prepares a step, up to a gigabyte of pixels."""
LONGEST_FOLDER = 103 - len("/listener-01234567")
"""Longest path of a folder for multiprocessing's sockets, in bytes; a socket's has 103 on macOS."""
FINAL = (
    ArithmeticError,  # a loss that is not finite
    AssertionError,
    FileNotFoundError,
    ImportError,
    LookupError,
    SamClipError,
    TypeError,
    ValueError,
)
"""Errors that follow from the recipe, the files or the code. After others, such as a lost process
or a lost connection to it, Ray restarts the workers."""


def rank() -> int:
    """Return this worker's rank; rank 0 writes files and reports."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def summed(values: Tensor) -> Tensor:
    """Return the sum of ``values`` over all workers; their shapes must agree.

    ``values`` must be on the run's device: a group for GPUs has no backend for other tensors.
    """
    if dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
    return values


def read(values: Tensor) -> list[float]:
    """Copy a vector to the host, which waits for the device."""
    numbers: list[float] = values.tolist()
    return numbers


def wait(device: torch.device) -> None:
    """Wait until every worker has reached this call."""
    read(summed(torch.zeros(1, device=device)))


def share(values: Iterable[Tensor]) -> None:
    """Overwrite ``values``, on the run's device, with those of worker 0 on every worker."""
    if dist.is_initialized():
        for value in values:
            dist.broadcast(value, src=0)


def differ(values: Tensor) -> int:
    """Return, on all workers alike, how many have other ``values`` than worker 0."""
    first = values.clone()
    share([first])
    return int(read(summed((first != values).any().long()[None]))[0])


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its sum over the workers, in one all-reduce.

    A parameter that no worker's loss reached keeps no gradient, so that AdamW does not decay it.
    """
    learning = [p for p in parameters if p.requires_grad]
    if not dist.is_initialized() or not learning:
        return
    own = torch.tensor([float(p.grad is not None) for p in learning], device=learning[0].device)
    reached = [p for p, by in zip(learning, read(summed(own)), strict=True) if by]
    if not reached:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in reached]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    pieces = flat.split([p.numel() for p in reached])
    for p, piece in zip(reached, pieces, strict=True):
        p.grad = piece.view_as(p)


def check_shared(folder: Folder, device: torch.device) -> None:
    """Raise ValueError, on all workers alike, unless each of them sees a file of worker 0."""
    token = float(random.SystemRandom().randrange(1, 2**24))  # exact in float32
    own = torch.tensor([token if rank() == 0 else 0.0], device=device)
    # A new name each time: network file systems remember for seconds what a known one held.
    name = f".shared-{read(summed(own))[0]:.0f}"
    if rank() == 0:
        with folder.replacing(name) as file:
            file.touch()
    wait(device)
    blind = torch.tensor([float(not folder.exists(name))], device=device)
    total = read(summed(blind))[0]
    if rank() == 0:
        folder.remove(name)
    if total:
        raise ValueError(
            f"{total:.0f} of {count()} workers do not see what worker 0 writes to "
            f"{folder.url}: expected a folder that all nodes share, or a URL such as s3://…, as "
            "--out"
        )


def readers(device: torch.device) -> int:
    """Return how many processes decode ahead for this worker: one per core that it leaves idle.

    A worker on a GPU keeps a single core busy, one on CPUs all of them.
    """
    if device.type != "cuda":
        return 0
    return min(_cores() - 1, MOST_READERS)


def clean() -> BaseContext:
    """Return how readers start: as forks of a process without threads that has their imports.

    In a fork of this one, a lock that another thread holds would never be free again.
    """
    _short_sockets()
    context = get_context("forkserver")
    context.set_forkserver_preload(["training.distillation.sampling"])
    return context


def _short_sockets() -> None:
    """Put the sockets of multiprocessing into /tmp if their paths would be too long in TMPDIR.

    Later versions of Python do so themselves.
    """
    if len(os.fsencode(util.get_temp_dir())) > LONGEST_FOLDER:
        made = tempfile.mkdtemp(prefix="pymp-", dir="/tmp")
        atexit.register(shutil.rmtree, made, ignore_errors=True)
        vars(current_process())["_config"]["tempdir"] = made


def end_with_parent() -> None:
    """End this reader when the process that started it ends, even if that one is killed.

    The process that it is a fork of lives as long as its forks.
    """
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _cores() -> int:
    """Return this worker's share of the cores that Ray counts on its machine."""
    if not dist.is_initialized():
        return os.cpu_count() or 1
    here = ray.get_runtime_context().get_node_id()
    cores = {node["NodeID"]: node["Resources"].get("CPU", 1.0) for node in ray.nodes()}
    return max(1, int(cores[here]) // ray.train.get_context().get_local_world_size())


def report(figures: dict[str, float]) -> None:
    """Report figures to Ray Train and as the Ray metric ``ray_samclip_training{figure}``.

    Does nothing without torch.distributed.
    """
    if dist.is_initialized():
        ray.train.report(figures)
        if rank() == 0:
            for name, value in figures.items():
                _gauge().set(value, {"figure": name})


@cache
def _gauge() -> Gauge:
    return Gauge(
        "samclip_training", "Latest value of a training figure, named STAGE/NAME.", ("figure",)
    )


class EndOnFinalErrors(UserCallback):
    """Raise a worker's final error in Ray's controller, which then does not restart the workers."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Ray Train calls this before it decides on a restart."""
        for error in worker_exceptions.values():
            if isinstance(error, FINAL):
                raise error
