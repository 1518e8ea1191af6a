"""The length, the learning rate and the optimizer of a stage."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

Parameters = Iterable[tuple[str, nn.Parameter]]
_POSITIONS = re.compile(r"(^|[._])(pos|position\w*)([._]|$)|bias")
"""Parts of the names of biases, and of tables of absolute or relative positions."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The length and the learning rate of a stage.

    ``encoder_rate`` multiplies the rate of the pretrained encoder (0.1 in the paper). ``average``
    is the decay of the weights' moving average. A stage returns these averaged weights: the best
    ones, which have the lowest validation loss (``best``), or the final ones (``last``).

    ``stop_on`` is a figure of ``samclip eval`` and the folder of its set in the data, as in
    ``coco-boxes/ap=coco``. It is measured every ``save_every`` steps, the weights with the best one
    are used, and after ``patience`` times without a better one the stage ends.
    """

    steps: int
    rate: float
    encoder_rate: float = 0.1
    warmup: int = 50
    weight_decay: float = 0.05
    average: float = 0.998
    save_every: int = 200
    keep: Literal["best", "last"] = "best"
    stop_on: str = ""
    patience: int = 3


def optimizer(schedule: Schedule, slow: Parameters, fast: Parameters) -> torch.optim.AdamW:
    """Return AdamW over the trainable named parameters, pretrained (slow) and new (fast).

    Norms, biases and position tables do not decay. All of them are updated in one fused kernel,
    which meta tensors do not have.
    """
    rates = (slow, schedule.rate * schedule.encoder_rate), (fast, schedule.rate)
    groups: list[dict[str, Any]] = []
    for named, rate in rates:
        learning = [(name, p) for name, p in named if p.requires_grad]
        fixed = {name for name, p in learning if p.ndim < 2 or _POSITIONS.search(name)}
        for decays, decay in ((True, schedule.weight_decay), (False, 0.0)):
            chosen = [p for name, p in learning if (name not in fixed) == decays]
            groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
    has_data = not any(p.is_meta for group in groups for p in group["params"])
    made = torch.optim.AdamW([group for group in groups if group["params"]], fused=has_data)
    made.register_step_pre_hook(_lay_out_gradients)
    return made


def _lay_out_gradients(learning: torch.optim.Optimizer, *_: object) -> None:
    """Lay out gradients in memory as their parameters are, because the fused kernel expects that.

    A sum over workers, or a 1×1 convolution with channels last, has another layout.
    """
    for parameter in [p for group in learning.param_groups for p in group["params"]]:
        gradient = parameter.grad
        if gradient is not None and gradient.stride() != parameter.stride():
            parameter.grad = torch.empty_like(parameter).copy_(gradient)


def rate_at(step: int, schedule: Schedule) -> float:
    """Return a step's share of the full rate: linear warm-up, then cosine decay to zero."""
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup
    progress = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
