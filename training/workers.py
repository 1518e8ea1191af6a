"""The workers of a run: which part of a step is whose, and what they sum.

Every worker holds the whole network and takes every n-th slot of a step's global batch. Losses are
scaled to their share of the global batch, so gradients and figures are plain sums over workers:
the same for any number of them. Where torch.distributed is not started, there is one worker.
"""

from collections.abc import Iterable
from functools import cache

import ray.train
import torch
import torch.distributed as dist
from ray.util.metrics import Gauge
from torch import Tensor, nn


def rank() -> int:
    """Which worker this is; 0 writes and reports."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many workers there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def own(slots: int) -> range:
    """The slots of a global batch that this worker takes."""
    return range(rank(), slots, count())


def summed(values: Tensor) -> Tensor:
    """The sum of every worker's ``values``; each worker gives the same shape."""
    if dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
    return values


def summed_by_name(figures: dict[str, float]) -> dict[str, float]:
    """The sums of every worker's figures; one that had no part of a step has no names to give."""
    gathered = [figures] * count()
    if dist.is_initialized():
        dist.all_gather_object(gathered, figures)
    total: dict[str, float] = {}
    for part in gathered:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


def wait() -> None:
    """Return when every worker has come here."""
    if dist.is_initialized():
        dist.barrier()


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its sum over the workers, in one message.

    A parameter that this worker's part did not reach counts as zero: others may have reached it.
    """
    learning = [p for p in parameters if p.requires_grad]
    if not dist.is_initialized() or not learning:
        return
    for p in learning:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    flat = torch.cat([p.grad.flatten() for p in learning if p.grad is not None])
    dist.all_reduce(flat)
    pieces = flat.split([p.numel() for p in learning])
    for p, piece in zip(learning, pieces, strict=True):
        p.grad = piece.view_as(p)


def report(figures: dict[str, float]) -> None:
    """Tell figures to Ray Train, and to who scrapes Ray: ``ray_samclip_training{figure}``.

    A run without Ray has its progress bar.
    """
    if dist.is_initialized():
        ray.train.report(figures)
        if rank() == 0:
            for name, value in figures.items():
                _gauge().set(value, {"figure": name})


@cache
def _gauge() -> Gauge:
    return Gauge("samclip_training", "The latest figure of a training, STAGE/NAME.", ("figure",))
