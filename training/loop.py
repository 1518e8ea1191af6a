"""The one loop of every stage: step, average, report, save, resume."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long a stage runs and how fast it learns.

    ``encoder_rate`` multiplies the rate of the pretrained encoder: the paper's tenth.
    """

    steps: int
    rate: float
    encoder_rate: float = 0.1
    warmup: int = 50
    weight_decay: float = 0.05
    average: float = 0.998
    save_every: int = 200


def optimizer(
    schedule: Schedule, slow: Iterable[nn.Parameter], fast: Iterable[nn.Parameter]
) -> torch.optim.AdamW:
    """AdamW over the pretrained (slow) and the new (fast) parameters that may learn."""
    groups = [
        {
            "params": [p for p in slow if p.requires_grad],
            "lr": schedule.rate * schedule.encoder_rate,
        },
        {"params": [p for p in fast if p.requires_grad], "lr": schedule.rate},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], weight_decay=schedule.weight_decay
    )


def rate_at(step: int, schedule: Schedule) -> float:
    """The share of the full rate at a step: linear warm-up, then a half cosine down to zero."""
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup
    progress = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def fit(
    name: str,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    schedule: Schedule,
    step: Callable[[int], dict[str, Tensor]],
    folder: Path,
) -> nn.Module:
    """Run ``step`` (which calls backward itself and returns losses to show) and average weights.

    Each step's random numbers come from its number, so a run that is stopped and started again
    goes on as if nothing had happened. Gives the model with the averaged weights.
    """
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(schedule.average))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: rate_at(s, schedule))
    state_file = folder / f"{name}.state.pt"
    parts = {"model": model, "averaged": averaged, "optimizer": optimiser, "schedule": scheduler}
    start = _resume(state_file, parts)
    with (
        _open_log(folder / f"{name}.losses.tsv", start) as losses_log,
        tqdm(range(start, schedule.steps), desc=name, initial=start, total=schedule.steps) as bar,
    ):
        for number in bar:
            optimiser.zero_grad(set_to_none=True)
            losses = step(number)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            scheduler.step()
            averaged.update_parameters(model)
            values = {key: float(value) for key, value in losses.items()}
            losses_log.write(f"{number}\t" + "\t".join(f"{v:.5f}" for v in values.values()) + "\n")
            bar.set_postfix({key: f"{value:.3f}" for key, value in values.items()})
            if (number + 1) % schedule.save_every == 0 or number + 1 == schedule.steps:
                losses_log.flush()
                _save(state_file, parts, number + 1)
    model.load_state_dict(averaged.module.state_dict())
    return model


def _open_log(path: Path, done: int) -> TextIO:
    """The losses of a stage, a line for each step; those of steps to be repeated are dropped."""
    kept = path.read_text().splitlines(keepends=True)[:done] if path.exists() else []
    path.write_text("".join(kept))
    return path.open("a")


def _save(path: Path, parts: dict, done: int) -> None:
    state = {key: part.state_dict() for key, part in parts.items()} | {"done": done}
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def _resume(path: Path, parts: dict) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for key, part in parts.items():
        part.load_state_dict(state[key])
    return int(state["done"])
