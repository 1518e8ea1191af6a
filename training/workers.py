"""The data-parallel workers of a run: how they share a step and sum their results.

Every worker holds the whole network and takes every n-th slot of a step's global batch. Losses are
scaled to their share of the global batch, so gradients and figures are plain sums over workers,
whatever their number. Without torch.distributed there is one worker.
"""

from collections.abc import Iterable
from functools import cache

import ray.train
import torch
import torch.distributed as dist
from ray.util.metrics import Gauge
from torch import Tensor, nn


def rank() -> int:
    """Return this worker's rank; rank 0 writes files and reports."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Return the number of workers."""
    return dist.get_world_size() if dist.is_initialized() else 1


def own(slots: int) -> range:
    """Return this worker's slots of a global batch."""
    return range(rank(), slots, count())


def summed(values: Tensor) -> Tensor:
    """Return the sum of ``values`` over all workers; their shapes must agree."""
    if dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
    return values


def summed_by_name(figures: dict[str, float]) -> dict[str, float]:
    """Return the sums of figures over all workers; a worker without data may have no names."""
    gathered = [figures] * count()
    if dist.is_initialized():
        dist.all_gather_object(gathered, figures)
    total: dict[str, float] = {}
    for part in gathered:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


def wait() -> None:
    """Wait until every worker has reached this call."""
    if dist.is_initialized():
        dist.barrier()


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its sum over the workers, in one all-reduce.

    A parameter without a gradient counts as zero, because other workers may have one.
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
